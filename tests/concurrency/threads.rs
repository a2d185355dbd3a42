//! The threads, locks and waits of the bodies, the machine's own or the checker's; and how a body
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
    /// How often a body is run on real threads.
    const TIMES: usize = 300;

    /// Runs a body again and again.
    pub fn check(body: impl Fn()) {
        for _ in 0..TIMES {
            body();
        }
    }

    /// As [`check`]; the checker looks at every schedule.
    pub fn check_all(body: impl Fn()) {
        check(body);
    }

    /// Runs what needs no other threads.
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

    use keepcount::replay;
    use shuttle::scheduler::{
        DfsScheduler, PctScheduler, RandomScheduler, Scheduler, UrwRandomScheduler,
    };
    use shuttle::{Config, Runner};

    /// How many schedules of each kind; others by the environment's `KEEPCOUNT_SCHEDULES`.
    const SCHEDULES: usize = 4_000;
    /// How often the priorities of threads change: bugs of two threads need one to three times.
    const TURNS: usize = 3;
    /// A body that [`check_all`] runs has fewer schedules than this.
    const MAX_ALL: usize = 200_000;
    /// A fault is found within this many schedules of some kind, the same every time.
    const FOUND_WITHIN: usize = 5_000;
    const SEED: u64 = 1;

    fn schedules() -> usize {
        let wanted = std::env::var("KEEPCOUNT_SCHEDULES").ok();
        wanted.map_or(SCHEDULES, |wanted| wanted.parse().expect("KEEPCOUNT_SCHEDULES is a number"))
    }

    /// The schedulers: who is next is chosen at random; so that every schedule is as likely,
    /// although one thread has far more to do than another; by priorities that change a few times.
    fn kinds(seed: u64, schedules: usize) -> [(&'static str, Box<dyn Scheduler + Send>); 3] {
        [
            ("at random", Box::new(RandomScheduler::new_from_seed(seed, schedules))),
            ("uniformly", Box::new(UrwRandomScheduler::new_from_seed(seed, schedules))),
            ("by turns", Box::new(PctScheduler::new_from_seed(seed, TURNS, schedules))),
        ]
    }

    fn run(scheduler: impl Scheduler + 'static, body: impl Fn() + Send + Sync + 'static) -> usize {
        static FIXED: OnceLock<bool> = OnceLock::new();
        // A failed schedule can be replayed in another process; and over two stripes it is short,
        // and says all that there is to say of one and another.
        assert!(FIXED.get_or_init(|| replay::fix(2)), "no key was hashed before");
        let mut config = Config::new();
        // A whole run of a reconciler is on it; the 32 KiB that it has by default were too few.
        config.stack_size = 1 << 18;
        Runner::new(scheduler, config).run(body)
    }

    /// Says how many schedules a test has run, past what captures the output of tests that pass.
    fn say(schedules: &str) {
        let test = thread::current().name().unwrap_or("a test").to_owned();
        stderr().write_all(format!("{test}: {schedules}\n").as_bytes()).unwrap();
    }

    /// Runs a body over schedules of every kind; one that fails is printed, for `shuttle::replay`.
    pub fn check(body: impl Fn() + Clone + Send + Sync + 'static) {
        // Other schedules every time.
        let kinds = kinds(RandomState::new().hash_one(0), schedules());
        let done =
            kinds.map(|(kind, scheduler)| format!("{} {kind}", run(scheduler, body.clone())));
        say(&format!("schedules {}", done.join(", ")));
    }

    /// Runs a small body over all of its schedules.
    pub fn check_all(body: impl Fn() + Send + Sync + 'static) {
        let all = run(DfsScheduler::new(Some(MAX_ALL), false), body);
        assert!(all < MAX_ALL, "a smaller body, or check");
        say(&format!("all {all} schedules"));
    }

    /// Runs what needs no other threads.
    pub fn once<T: Send + 'static>(body: impl Fn() -> T + Send + Sync + 'static) -> T {
        let result = Arc::new(Mutex::new(None));
        let given = Arc::clone(&result);
        run(RandomScheduler::new_from_seed(SEED, 1), move || *given.lock().unwrap() = Some(body()));
        result.lock().unwrap().take().unwrap()
    }

    /// Asserts that some schedule of a body fails.
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
        assert!(!found.is_empty(), "{FOUND_WITHIN} schedules of each kind, and none fails");
        say(&format!("found by schedule {}", found.join(", ")));
    }
}
