//! Jobs. Due times are compared with a naive list, without a clock. Tests of the thread do not
//! depend on the speed of the machine: a wait is bounded so generously that only a thread that
//! never wakes exceeds the bound.

use std::panic::panic_any;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use keepcount::job::{Job, Schedule, Status};
use keepcount::reconcile::{MemoryAudit, Mode, Options, Outcome, Reconciler, SystemRuntime, run};
use keepcount::{Counter, Error, MemoryStore, Record, Schema, Tally};
use proptest::prelude::*;

const HOUR: Duration = Duration::from_secs(3600);
const MS: Duration = Duration::from_millis(1);
/// The bound of a wait: far less than the hour that a job sleeps if nothing wakes it.
const LONGEST: Duration = Duration::from_secs(60);

fn schedules() -> impl Strategy<Value = Schedule> {
    (1..=u64::from(u32::MAX) * 1000, 0..=u64::from(u32::MAX) * 1000, 0..=50_u8, any::<u64>())
        .prop_map(|(interval, first, jitter, seed)| {
            Schedule::every(Duration::from_nanos(interval))
                .first_after(Duration::from_nanos(first))
                .jitter_percent(jitter)
                .seed(seed)
        })
}

proptest! {
    #[test]
    fn due_time_is_moved_by_at_most_the_jitter_share_of_the_interval(
        interval in 1..=u64::MAX, first in any::<u64>(), jitter in 0..=50_u8, seed: u64, number in 0..=u64::MAX,
    ) {
        let schedule = Schedule::every(Duration::from_nanos(interval))
            .first_after(Duration::from_nanos(first))
            .jitter_percent(jitter)
            .seed(seed);
        let plain = u128::from(first) + u128::from(interval) * u128::from(number);
        let due = schedule.due(number).as_nanos();
        prop_assert!(due >= plain.min(Duration::MAX.as_nanos()));
        prop_assert!(due <= plain + u128::from(interval) * u128::from(jitter) / 100);
    }

    #[test]
    fn due_times_are_at_least_half_an_interval_apart(
        schedule in schedules(), number in 0..1_u64 << 20,
    ) {
        let half = schedule.first_after(Duration::ZERO).jitter_percent(0).due(1) / 2;
        prop_assert!(schedule.due(number + 1) >= schedule.due(number) + half);
    }

    #[test]
    fn next_due_time_is_the_first_later_one(
        schedule in schedules(), number in 0..200_u64, moved in -2..=2_i64,
    ) {
        // Times near a due time, where an off-by-one error would show.
        let due = i64::try_from(schedule.due(number).as_nanos()).unwrap();
        let moment = Duration::from_nanos(u64::try_from((due + moved).max(0)).unwrap());
        let naive = (0..=number + 3).find(|number| schedule.due(*number) > moment).unwrap();
        prop_assert_eq!(schedule.next_after(moment), naive);
    }

    #[test]
    fn runs_of_any_length_never_overlap_and_never_queue_up(
        schedule in schedules(), lengths in prop::collection::vec(0..500_u32, 1..50),
    ) {
        // The lengths are percentages of the interval.
        let interval = schedule.first_after(Duration::ZERO).jitter_percent(0).due(1);
        let (mut number, mut free_at) = (0, Duration::ZERO);
        for percent in lengths {
            let start = schedule.due(number);
            prop_assert!(start >= free_at, "the runs overlap");
            prop_assert!(start <= free_at.max(schedule.due(0)) + interval * 3 / 2, "a late run");
            free_at = start + interval * percent / 100;
            let next = schedule.next_after(free_at);
            prop_assert!(next > number);
            number = next;
        }
    }

    #[test]
    fn extreme_schedules_do_not_panic(
        interval: u64, nanos in 0..1_000_000_000_u32, first: u64, jitter: u8, seed: u64, number: u64, moment: u64,
    ) {
        let schedule = Schedule::every(Duration::new(interval, nanos))
            .first_after(Duration::new(first, nanos))
            .jitter_percent(jitter)
            .seed(seed);
        let _ = schedule.due(number);
        let _ = schedule.next_after(Duration::new(moment, nanos));
    }
}

#[test]
fn jitter_depends_only_on_the_seed_and_covers_its_whole_range() {
    let schedule = Schedule::every(Duration::from_secs(100)).jitter_percent(50);
    let moved = |seed: u64| -> Vec<u64> {
        (0..1000).map(|number| schedule.seed(seed).due(number).as_secs() - 100 * number).collect()
    };
    assert_eq!(moved(1), moved(1));
    assert_ne!(moved(1), moved(2));
    // Every one of the fifty seconds occurs, over the runs of one seed and over the seeds of many
    // processes.
    assert!((0..50).all(|second| moved(7).contains(&second)));
    assert!(
        (0..50).all(|second| (0..1000).any(|seed| schedule.seed(seed).due(0).as_secs() == second))
    );
}

#[test]
fn unusable_schedules_and_names_are_refused() {
    let spawn = |schedule: Schedule, name: &str| schedule.spawn(name, |_| Ok(())).map(Job::join);
    let refused = |spawned: Result<Status, Error>, wanted: &str| match spawned {
        Err(error @ Error::InvalidUse { .. }) => assert_eq!(error.to_string(), wanted),
        other => panic!("{other:?}"),
    };
    refused(spawn(Schedule::every(Duration::ZERO), "zero"), "interval: it is zero");
    refused(
        spawn(Schedule::every(HOUR).jitter_percent(51), "wide"),
        "jitter percent: 51 is not between 0 and 50",
    );
    refused(spawn(Schedule::every(HOUR), "a\0b"), "job name: it has a NUL in it");
    spawn(Schedule::every(Duration::MAX).jitter_percent(50), "rare").unwrap();
}

/// Spawns a job with an interval of an hour. Each run sends its number, from 1 on, into the
/// returned channel.
fn hourly_job(
    work: impl FnMut(u64, &AtomicBool) -> Result<(), keepcount::Cause> + Send + 'static,
) -> (Job, Receiver<u64>) {
    first_after_an_hour(Schedule::every(HOUR), work)
}

fn first_after_an_hour(
    schedule: Schedule,
    mut work: impl FnMut(u64, &AtomicBool) -> Result<(), keepcount::Cause> + Send + 'static,
) -> (Job, Receiver<u64>) {
    let (runs, ran) = channel();
    let mut number = 0;
    let job = schedule.first_after(HOUR).spawn("sleeper", move |stop| {
        number += 1;
        runs.send(number)?;
        work(number, stop)
    });
    (job.unwrap(), ran)
}

/// Waits until the job's status satisfies a condition, and returns it.
fn wait_until(job: &Job, wanted: impl Fn(&Status) -> bool) -> Status {
    loop {
        let status = job.status();
        if wanted(&status) {
            return status;
        }
        assert!(status.age < LONGEST, "{status:?}");
        thread::sleep(MS);
    }
}

#[test]
fn first_run_is_immediate_and_on_a_thread_of_the_given_name() {
    let (names, told) = channel();
    let job = Schedule::every(HOUR).spawn("votes", move |_| {
        names.send(thread::current().name().map(str::to_owned))?;
        Ok(())
    });
    assert_eq!(told.recv_timeout(LONGEST).unwrap().as_deref(), Some("votes"));
    let job = job.unwrap();
    let status = wait_until(&job, |status| !status.running);
    assert_eq!((status.runs, status.skipped, status.next_due), (1, 0, Some(HOUR)));
    assert!(status.last_started <= status.last_ended && status.last_ended <= Some(status.age));
}

#[test]
fn runs_never_overlap_and_due_times_during_a_run_are_skipped() {
    let inside = Arc::new(AtomicU64::new(0));
    let job = Schedule::every(MS).spawn("long", move |_| {
        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two runs at once");
        thread::sleep(20 * MS);
        inside.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    });
    let job = job.unwrap();
    thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(|| {
                while job.status().runs < 5 {
                    job.run_now();
                }
            });
        }
    });
    let status = job.join();
    assert_eq!(status.panics, 0, "{status:?}");
    // A run takes at least twenty intervals. The due times of the last run may not have passed.
    assert!(status.skipped >= 5 * 19, "{status:?}");
    let passed = u64::try_from(status.last_ended.unwrap().as_millis()).unwrap() + 1;
    // Runs that `run_now` requested use no due time, so they may add to the sum.
    assert!(status.skipped <= passed && status.skipped + status.runs >= passed, "{status:?}");
}

#[test]
fn sleeping_job_stops_immediately() {
    let (job, ran) = hourly_job(|_, _| Ok(()));
    thread::sleep(10 * MS); // most likely it sleeps now; if not, it is stopped before that
    let status = job.join();
    assert!(status.age < LONGEST && ran.recv().is_err());
    assert_eq!((status.runs, status.running, status.next_due), (0, false, None));
}

#[test]
fn stop_returns_immediately_and_sets_the_flag_of_the_current_run() {
    let (job, ran) = hourly_job(|_, stop| {
        while !stop.load(Ordering::Relaxed) {
            thread::sleep(MS);
        }
        Ok(())
    });
    job.run_now();
    ran.recv_timeout(LONGEST).unwrap();
    assert!(job.status().running);
    job.stop();
    job.run_now(); // too late
    let status = job.join();
    assert_eq!((status.runs, status.failing), (1, false));
    assert!(ran.recv().is_err());
}

const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
const SCHEMA: Schema = Schema::new(&[SHOW_VOTES.table()]);

struct Vote(i64);

impl Record for Vote {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(SHOW_VOTES, self.0, 1);
    }
}

#[test]
fn stop_ends_a_reconciler_between_two_pages() {
    let (reports, reported) = channel();
    let (pages, diff) = channel();
    let job = Schedule::every(HOUR).spawn("repair", move |stop| {
        let votes: Vec<Vote> = (0..100).map(Vote).collect();
        let mut store = MemoryStore::new(&SCHEMA);
        let mut audit = MemoryAudit::new(&mut store);
        audit.add(SHOW_VOTES, |_| votes.iter())?;
        let mut repair = Reconciler::new(Mode::Repair, &SCHEMA, Options::default().page(1))?;
        let mut page = 0;
        let mut live = SystemRuntime::new().stop_flag(stop).throttle(|| {
            page += 1;
            let _ = pages.send(page);
            while page == 3 && !stop.load(Ordering::Relaxed) {
                thread::sleep(MS);
            }
            None
        });
        reports.send(run(&mut repair, &mut audit, &mut live)?)?;
        Ok(())
    });
    let job = job.unwrap();
    while diff.recv_timeout(LONGEST).unwrap() < 3 {}
    job.stop();
    let report = reported.recv_timeout(LONGEST).unwrap();
    assert_eq!((report.outcome, report.pages), (Outcome::Stopped, 2));
    assert!(report.token.is_some());
    assert_eq!(job.join().failures, 0);
}

#[test]
fn work_that_sets_the_flag_ends_its_own_job() {
    let job = Schedule::every(MS).spawn("once", |stop| {
        stop.store(true, Ordering::Relaxed);
        Ok(())
    });
    let job = job.unwrap();
    wait_until(&job, |status| status.runs == 1 && status.next_due.is_none());
    assert_eq!(job.join().runs, 1);
}

/// A panic payload that panics when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("dropped");
    }
}

#[derive(Debug)]
struct Unspeakable;

impl std::error::Error for Unspeakable {}

impl std::fmt::Display for Unspeakable {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic!("no words")
    }
}

#[test]
fn panics_and_errors_are_reported_and_the_job_continues() {
    let (job, ran) = hourly_job(|number, _| match number {
        1 => panic!("a text"),
        2 => panic!("a text, and {number}"),
        3 => panic_any(Bomb),
        4 => Err("an error")?,
        5 => Err(Unspeakable)?,
        _ => Ok(()),
    });
    let texts = [
        "panic: a text",
        "panic: a text, and 2",
        "panic: a value that is not text",
        "an error",
        "panic: no words",
    ];
    for (number, text) in (1..).zip(texts) {
        job.run_now();
        assert_eq!(ran.recv_timeout(LONGEST).unwrap(), number);
        let status = wait_until(&job, |status| status.runs == number);
        assert_eq!(status.last_error.as_deref(), Some(text));
        assert!(status.failing && !status.running);
    }
    job.run_now();
    let status = wait_until(&job, |status| status.runs == 6);
    assert_eq!((status.failures, status.panics, status.failing), (1, 4, false));
    assert_eq!(status.last_error.as_deref(), Some("panic: no words"));
    assert_eq!(status.next_due, Some(HOUR), "`run_now` moves no due time");
}

/// An error whose cause is in its source.
#[derive(Debug)]
struct Hiding(std::num::ParseIntError);

impl std::fmt::Display for Hiding {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str("the import failed")
    }
}

impl std::error::Error for Hiding {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

#[test]
fn last_error_includes_its_causes() {
    let (job, ran) = hourly_job(|_, _| Err(Hiding("x".parse::<u8>().unwrap_err()))?);
    job.run_now();
    ran.recv_timeout(LONGEST).unwrap();
    let status = wait_until(&job, |status| status.runs == 1);
    assert_eq!(
        status.last_error.as_deref(),
        Some("the import failed: invalid digit found in string")
    );
}

#[test]
fn job_that_panics_repeatedly_slows_down_until_a_run_does_not_panic() {
    let job = Schedule::every(MS).slow_after(3).spawn("panics", {
        let mut number = 0;
        move |stop| {
            number += 1;
            assert!(number > 5, "run {number}");
            stop.store(number == 8, Ordering::Relaxed);
            Ok(())
        }
    });
    let job = job.unwrap();
    let status = wait_until(&job, |status| status.runs == 8);
    // After the third, fourth and fifth panic nine due times each are skipped, and more on a slow
    // machine.
    assert_eq!(status.panics, 5);
    assert!(status.skipped >= 27 && status.last_started.unwrap() >= 34 * MS, "{status:?}");
}

#[test]
fn slow_schedule_ends_with_the_first_run_that_does_not_panic() {
    let (job, _ran) =
        first_after_an_hour(Schedule::every(HOUR).slow_after(3), |number, _| match number {
            1 | 3..=6 | 9 => panic!("{number}"),
            7 => Err("an error is no panic")?,
            _ => Ok(()),
        });
    // After each run: the hour at which the next run is due.
    for (run, hour) in (1..).zip([1, 1, 1, 1, 10, 10, 1, 1, 1]) {
        job.run_now();
        let status = wait_until(&job, |status| status.runs == run);
        assert_eq!((status.next_due, status.skipped), (Some(hour * HOUR), 0), "after run {run}");
    }
}

#[test]
fn run_now_wakes_a_job_and_several_calls_during_a_run_add_one_run() {
    let (go_on, wait) = channel();
    let (job, ran) = hourly_job(move |number, _| {
        if number == 1 {
            wait.recv()?;
        }
        Ok(())
    });
    job.run_now();
    ran.recv_timeout(LONGEST).unwrap();
    for _ in 0..5 {
        job.run_now();
    }
    go_on.send(()).unwrap();
    assert_eq!(ran.recv_timeout(LONGEST).unwrap(), 2);
    wait_until(&job, |status| status.runs == 2);
    assert!(ran.recv_timeout(50 * MS).is_err());
    let status = job.join();
    assert_eq!((status.runs, status.skipped), (2, 0));
}

/// Sends a message when it is dropped.
struct Told(Sender<()>);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.send(()).unwrap();
    }
}

#[test]
fn drop_of_a_job_waits_for_its_end() {
    let (drops, dropped) = channel();
    let told = Told(drops);
    let (job, ran) = hourly_job(move |_, stop| {
        let _told = &told;
        while !stop.load(Ordering::Relaxed) {
            thread::sleep(MS);
        }
        thread::sleep(10 * MS);
        Ok(())
    });
    job.run_now();
    ran.recv_timeout(LONGEST).unwrap();
    drop(job);
    // Not `recv`: the work and all that it owns must be dropped already.
    dropped.try_recv().unwrap();
}

#[test]
fn work_may_drop_its_own_job() {
    let (drops, dropped) = channel();
    let own = Arc::new(Mutex::new(None::<Job>));
    let (job, ran) = hourly_job({
        let (own, told) = (Arc::clone(&own), Told(drops));
        move |_, stop| {
            let _told = &told;
            drop(own.lock().unwrap().take());
            assert!(stop.load(Ordering::Relaxed));
            Ok(())
        }
    });
    job.run_now();
    own.lock().unwrap().replace(job);
    // The run may have started before the job was stored, and found none to drop.
    while dropped.try_recv().is_err() {
        if let Some(job) = &*own.lock().unwrap() {
            job.run_now();
        }
        thread::sleep(MS);
    }
    assert!(own.lock().unwrap().is_none());
    drop(ran);
}
