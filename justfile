# Every gate is one line here; `.ci/run` runs the same without just.

# The fast gates: format, lints, features, docs, tests of the library.
check: fmt clippy features doc
    cargo test --all-features --lib --test counters --test reconcile --test concurrency --test monitoring
    cargo test --all-features --test postgres -- --skip crash:: --skip races:: --skip repairs:: --skip write::
    cargo test --all-features --doc

fmt:
    cargo fmt --all --check

clippy:
    cargo clippy --all-targets --all-features -- -D warnings

# Each feature alone, none, and all.
features:
    cargo check --lib --no-default-features
    cargo check --lib --features sqlite
    cargo check --lib --features postgres
    cargo check --lib --features uuid
    cargo check --lib --features tracing
    cargo check --lib --features metrics
    cargo check --lib --all-features

doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --all-features

# All tests, as README says; monitoring needs its features.
test:
    cargo test
    cargo test --all-features --test monitoring

# Kills at thousands of moments, and that every kind of moment was hit; disks that fail, pages that are damaged. Takes an hour or so.
crash rounds="2000":
    KEEPCOUNT_CRASH_ROUNDS={{rounds}} cargo test --test faults -- --nocapture kills:: failing_disk:: sqlite_faults::

# A long hunt of one fuzz target, for an hour; `.ci/fuzz` alone runs each for some seconds.
fuzz TARGET SECONDS="3600":
    ./.ci/fuzz {{SECONDS}} {{TARGET}}

# Threads on one memory store as a model checker schedules them; KEEPCOUNT_SCHEDULES says how many schedules of each kind a test runs.
concurrency:
    RUSTFLAGS="--cfg keepcount_shuttle" cargo test --target-dir target/shuttle --manifest-path tests/checker/Cargo.toml

# Every aim as a ratio against its peer, interleaved in one run.
aims:
    cargo bench --bench aims

# keepcount's statements through another library: `just library sqlx`, diesel or sea-orm.
library NAME:
    cargo test --target-dir target/examples --manifest-path examples/with-{{NAME}}/Cargo.toml

# A driver of another package: `just driver sqlx`, or sea-orm.
driver NAME:
    cargo test --target-dir target/examples --manifest-path drivers/{{NAME}}/Cargo.toml --features postgres,sqlite

# The reconciler as a job of a tokio application.
tokio:
    cargo test --manifest-path examples/with-tokio/Cargo.toml

# A private PostgreSQL server to play with, until Ctrl-C.
postgres:
    cargo test --quiet --test postgres a_server_to_play_with -- --ignored --nocapture

# The oldest rusqlite of the declared range: `just oldest check` builds on all of them.
oldest WHAT="":
    ./.ci/oldest {{WHAT}}

# Which rusqlite goes with sqlx, diesel and others in one build.
resolve:
    ./.ci/resolve

# Seeds of the simulation that nobody has seen, until one fails or it is stopped: SECONDS=0 is for ever. It prints the command that replays a seed.
simulate SECONDS="0":
    KEEPCOUNT_SIM_SECONDS={{SECONDS}} cargo test --release --test simulation hunt -- --ignored --nocapture

# Single faults planted in the core, each to be caught by the fast tests (tests/mutants): those whose names have TEXT, and with `all` as HOW by the slow tests too. Needs cargo-mutants, for the list of faults.
mutants TEXT="" HOW="":
    cargo run --release --target-dir target/mutants/tool --manifest-path tests/mutants/Cargo.toml -- '{{TEXT}}' '{{HOW}}'

# What verify and repair need of memory, over so many votes.
memory VOTES="2000000":
    KEEPCOUNT_VOTES={{VOTES}} cargo test --test concert -- --nocapture memory::

# Licences and sources of dependencies; needs cargo-deny.
deny:
    cargo deny check bans licenses sources

# Sixteen writers, deadlocks, and repairs beside them, on a private PostgreSQL: SECONDS for each of their hunts.
postgres-hunt SECONDS="120":
    KEEPCOUNT_REQUIRE_SERVERS=1 KEEPCOUNT_HUNT_SECONDS={{SECONDS}} cargo test --test postgres -- --nocapture races:: repairs::

# Connections cut and servers killed so many times while events are applied once.
postgres-crash ROUNDS="200":
    KEEPCOUNT_REQUIRE_SERVERS=1 KEEPCOUNT_CRASH_ROUNDS={{ROUNDS}} cargo test --test postgres -- --nocapture crash::

# SQLite stopped at every step of every call, not only at some of each.
interrupts MOMENTS="1000000":
    KEEPCOUNT_MOMENTS={{MOMENTS}} cargo test --test faults -- --nocapture sqlite_interrupts::

# So many statements cancelled at random, of every call that writes.
postgres-cancels CANCELS="10000":
    KEEPCOUNT_REQUIRE_SERVERS=1 KEEPCOUNT_CANCELS={{CANCELS}} cargo test --test postgres -- --nocapture crash::cancels::
