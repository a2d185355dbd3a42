//! The threads and locks that the test bodies use, either native or the checker's, and how a body
//! is run.

#[cfg(not(keepcount_shuttle))]
pub use parking_lot::Mutex;
#[cfg(not(keepcount_shuttle))]
pub use std::thread;

#[cfg(keepcount_shuttle)]
pub use shuttle::thread;
#[cfg(keepcount_shuttle)]
pub use shuttle_parking_lot::Mutex;

#[cfg(keepcount_shuttle)]
pub use self::checked::{check, check_all, finds, once};
#[cfg(not(keepcount_shuttle))]
pub use self::native::{check, check_all, once};

#[cfg(not(keepcount_shuttle))]
mod native {
    /// The number of runs of a body on real threads.
    const TIMES: usize = 300;

    /// Runs a body many times.
    pub fn check(body: impl Fn()) {
        for _ in 0..TIMES {
            body();
        }
    }

    /// As [`check`]. Under the checker, it explores every schedule.
    pub fn check_all(body: impl Fn()) {
        check(body);
    }

    /// Runs a body that spawns no threads.
    pub fn once<T>(body: impl Fn() -> T) -> T {
        body()
    }
}

#[cfg(keepcount_shuttle)]
mod checked {
    use std::hash::{BuildHasher, RandomState};
    use std::io::{Write, stderr};
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex, OnceLock};
    use std::thread;

    use keepcount::nondeterminism;
    use shuttle::scheduler::{
        DfsScheduler, PctScheduler, RandomScheduler, Scheduler, UrwRandomScheduler,
    };
    use shuttle::{Config, Runner};

    /// The number of schedules of each kind. `KEEPCOUNT_SCHEDULES` in the environment overrides it.
    const SCHEDULES: usize = 4_000;
    /// The number of priority changes in a schedule. Bugs between two threads need one to three.
    const TURNS: usize = 3;
    /// The bound on the number of schedules of a body that [`check_all`] runs.
    const MAX_ALL: usize = 200_000;
    /// Some kind of scheduler finds a fault within this many schedules. The seed is fixed, so the
    /// result is the same every time.
    const FOUND_WITHIN: usize = 5_000;
    const SEED: u64 = 1;

    fn schedules() -> usize {
        let wanted = std::env::var("KEEPCOUNT_SCHEDULES").ok();
        wanted.map_or(SCHEDULES, |wanted| wanted.parse().expect("KEEPCOUNT_SCHEDULES is a number"))
    }

    /// The schedulers: the next thread is chosen at random; so that every schedule is equally
    /// likely, even if one thread has many more steps than another; or by priorities that change a
    /// few times.
    fn kinds(seed: u64, schedules: usize) -> [(&'static str, Box<dyn Scheduler + Send>); 3] {
        [
            ("at random", Box::new(RandomScheduler::new_from_seed(seed, schedules))),
            ("uniformly", Box::new(UrwRandomScheduler::new_from_seed(seed, schedules))),
            ("by turns", Box::new(PctScheduler::new_from_seed(seed, TURNS, schedules))),
        ]
    }

    fn run(scheduler: impl Scheduler + 'static, body: impl Fn() + Send + Sync + 'static) -> usize {
        static FIXED: OnceLock<bool> = OnceLock::new();
        // With fixed hashing, a failed schedule can be replayed in another process. With two
        // stripes it is short, and two stripes cover both cases: keys of one stripe and keys of
        // different ones.
        assert!(
            FIXED.get_or_init(|| nondeterminism::fix(2)),
            "a key was hashed before the hash was fixed"
        );
        let mut config = Config::new();
        // The default of 32 KiB is too small for a whole run of a reconciler.
        config.stack_size = 1 << 18;
        Runner::new(scheduler, config).run(body)
    }

    /// Prints how many schedules a test has run, directly to stderr: the test harness captures what
    /// `println` prints in tests that pass.
    fn say(schedules: &str) {
        let test = thread::current().name().unwrap_or("a test").to_owned();
        stderr().write_all(format!("{test}: {schedules}\n").as_bytes()).unwrap();
    }

    /// Runs a body over schedules of every kind. A failing schedule is printed, for
    /// `shuttle::replay`.
    pub fn check(body: impl Fn() + Clone + Send + Sync + 'static) {
        // A new seed, so that every run of the test explores other schedules.
        let kinds = kinds(RandomState::new().hash_one(0), schedules());
        let done =
            kinds.map(|(kind, scheduler)| format!("{} {kind}", run(scheduler, body.clone())));
        say(&format!("schedules {}", done.join(", ")));
    }

    /// Runs a small body over all of its schedules.
    pub fn check_all(body: impl Fn() + Send + Sync + 'static) {
        let all = run(DfsScheduler::new(Some(MAX_ALL), false), body);
        assert!(all < MAX_ALL, "{all} schedules: make the body smaller, or use `check`");
        say(&format!("all {all} schedules"));
    }

    /// Runs a body that spawns no threads.
    pub fn once<T: Send + 'static>(body: impl Fn() -> T + Send + Sync + 'static) -> T {
        let result = Arc::new(Mutex::new(None));
        let given = Arc::clone(&result);
        run(RandomScheduler::new_from_seed(SEED, 1), move || *given.lock().unwrap() = Some(body()));
        result.lock().unwrap().take().unwrap()
    }

    /// Asserts that at least one schedule of a body fails.
    pub fn finds(body: impl Fn() + Clone + Send + Sync + 'static) {
        let mut found = Vec::new();
        for (kind, scheduler) in kinds(SEED, FOUND_WITHIN) {
            let schedule = Arc::new(AtomicUsize::new(0));
            let (counted, body) = (Arc::clone(&schedule), body.clone());
            let counting = move || {
                counted.fetch_add(1, Ordering::Relaxed);
                body();
            };
            if catch_unwind(AssertUnwindSafe(|| run(scheduler, counting))).is_err() {
                found.push(format!("{} {kind}", schedule.load(Ordering::Relaxed)));
            }
        }
        assert!(!found.is_empty(), "none of {FOUND_WITHIN} schedules of each kind fails");
        say(&format!("found by schedule {}", found.join(", ")));
    }
}
