//! Asynchronous callers, without a runtime. A pending write lives across an await, moves with its
//! task, and is dropped with it.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use keepcount::reconcile::Mode;
use keepcount::{Batch, KeyBuf, MemoryStore};

use super::threads::once;
use super::world::{GRACE, Keys, Row, World, keys, unsettled, with_batch};

/// A database call: pending at the first poll, ready at the second.
fn database() -> impl Future<Output = ()> + Send {
    let mut asked = false;
    poll_fn(
        move |_| if std::mem::replace(&mut asked, true) { Poll::Ready(()) } else { Poll::Pending },
    )
}

/// A handler as applications write it: it begins, awaits the database, and commits.
async fn handle(world: &World, rows: &[Row], batch: &mut Batch) -> keepcount::Result<()> {
    let pending_write = world.store.begin(batch)?;
    database().await;
    world.show(rows);
    pending_write.commit()?;
    Ok(())
}

/// A handler that must not block its thread: it calls `try_begin` until it succeeds.
async fn handle_in_turns(store: &MemoryStore, batch: &mut Batch) -> keepcount::Result<()> {
    loop {
        if let Some(pending_write) = store.try_begin(batch)? {
            database().await;
            pending_write.commit()?;
            return Ok(());
        }
        database().await;
    }
}

fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// Compiles only for types that can be sent to another thread.
fn assert_send<T: Send>(of: T) -> T {
    of
}

#[test]
fn a_pending_write_lives_across_an_await_and_moves_between_threads() {
    let Keys { here, .. } = keys();
    once(move || {
        let world = World::new();
        let (rows, mut batch) = with_batch([(here, 1)]);
        let mut future = pin!(assert_send(handle(&world, &rows, &mut batch)));
        assert!(poll(future.as_mut()).is_pending());
        assert!(poll(future.as_mut()).is_ready());
        let (_, mut batch) = with_batch([(here, 1)]);
        let mut other = pin!(assert_send(handle_in_turns(&world.store, &mut batch)));
        assert!(poll(other.as_mut()).is_pending());
        assert!(poll(other.as_mut()).is_ready());
        assert_eq!(world.drifts(), [(here, 1)].into());
    });
}

/// A client disconnects: its future is dropped at the await.
#[test]
fn future_dropped_at_its_await_leaves_its_keys_unresolved() {
    let Keys { here, there, .. } = keys();
    once(move || {
        let world = World::new();
        world.write([(here, 1), (there, 1)]);
        let (rows, mut batch) = with_batch([(here, 1), (there, 1)]);
        let mut future = Box::pin(assert_send(handle(&world, &rows, &mut batch)));
        assert!(poll(future.as_mut()).is_pending());
        drop(future);
        let mut unresolved = [here, there].map(KeyBuf::of::<i64>).to_vec();
        unresolved.sort();
        let report = world.run(Mode::Verify, 1).unwrap();
        assert_eq!((report.drift(), unsettled(&report)), (0, unresolved.clone()));
        // The transaction was committed all the same.
        world.show(&rows);
        let report = world.repair(1);
        assert_eq!((report.drift(), unsettled(&report)), (0, unresolved));
        world.pass(2 * GRACE);
        let report = world.repair(1);
        assert_eq!((report.drift(), unsettled(&report)), (2, vec![]));
        assert_eq!(world.drifts(), [].into());
    });
}

/// A future that was never polled has begun no pending write.
#[test]
fn future_dropped_before_its_first_poll_leaves_nothing() {
    let Keys { here, .. } = keys();
    once(move || {
        let world = World::new();
        let (rows, mut batch) = with_batch([(here, 1)]);
        drop(handle(&world, &rows, &mut batch));
        let report = world.run(Mode::Verify, 1).unwrap();
        assert_eq!((report.drift(), unsettled(&report)), (0, vec![]));
    });
}
