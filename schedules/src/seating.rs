//! Schedules of the seats: saves ask for a seat while the dispatcher closes.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use shuttle::future::{spawn, yield_now};

use super::seats::Seats;
use crate::{dispatch::processor::Processor, explore, stored::memory::Memory};

const CAPACITY: usize = 2;
const SAVES: usize = 4;

/// Checks that every save with a seat has handed its messages over for delivery when the close ends, that no more than `CAPACITY`
/// seats are ever taken, and that no save is still counted at the end.
pub fn a_close_waits_for_every_save_with_a_seat() {
    explore(close_beside_saves);
}

async fn close_beside_saves() {
    let seats = Seats::new(CAPACITY, Memory::of(1 << 20));
    let (taken, handed_over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));

    let mut tasks = Vec::new();
    for _ in 0..SAVES {
        let (seats, taken, handed_over) = (seats.clone(), taken.clone(), handed_over.clone());
        tasks.push(spawn(async move {
            yield_now().await;
            let Ok(seat) = seats.take(&Processor, 1) else { return };
            assert!(taken.fetch_add(1, Ordering::SeqCst) < CAPACITY);
            // Here the save is written.
            yield_now().await;
            handed_over.fetch_add(1, Ordering::SeqCst);
            drop(seat.save);
            // Here the messages of the save are delivered.
            yield_now().await;
            taken.fetch_sub(1, Ordering::SeqCst);
            drop(seat.taken);
        }));
    }
    yield_now().await;
    seats.close();
    seats.handed_over().await;
    let before = handed_over.load(Ordering::SeqCst);
    assert!(seats.take(&Processor, 1).is_err(), "a seat after the close");

    for task in tasks {
        assert!(task.await.is_ok());
    }
    assert_eq!(handed_over.load(Ordering::SeqCst), before, "a save was handed over after the close");
    assert_eq!(seats.saves(), 0);
}
