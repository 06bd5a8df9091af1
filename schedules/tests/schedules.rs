//! Each test runs thousands of schedules; `SCHEDULES=100000 cargo test -p outbox-schedules` runs 100,000 in each test.

use outbox_schedules::{as_is, broken, late_flush};

/// Expects these schedules to fail, because they run with a broken copy.
fn fails(schedules: fn()) {
    let failed = std::panic::catch_unwind(schedules);
    assert!(failed.is_err(), "no schedule shows that the rule is broken");
}

#[test]
fn each_request_is_answered_once() {
    as_is::answering::each_request_is_answered_once();
}

#[test]
fn whatever_is_deferred_is_cleared_once() {
    as_is::deferring::whatever_is_deferred_is_cleared_once();
}

#[test]
fn a_flush_waits_for_all_earlier_messages() {
    as_is::deferring::a_flush_waits_for_all_earlier_messages();
}

#[test]
fn what_a_save_removed_is_gone() {
    as_is::deferring::what_a_save_removed_is_gone();
}

#[test]
fn no_work_on_a_document_is_lost() {
    as_is::locking::no_work_on_a_document_is_lost();
}

#[test]
fn a_close_waits_for_every_save_with_a_seat() {
    as_is::seating::a_close_waits_for_every_save_with_a_seat();
}

#[test]
fn a_batch_that_wakes_no_task_is_found() {
    fails(broken::answering::each_request_is_answered_once);
}

#[test]
fn a_forgotten_deferred_clear_is_found() {
    fails(broken::deferring::whatever_is_deferred_is_cleared_once);
}

#[test]
fn a_flush_that_waits_too_late_is_found() {
    fails(late_flush::deferring::a_flush_waits_for_all_earlier_messages);
}

#[test]
fn work_left_to_a_task_at_work_is_found() {
    fails(broken::locking::no_work_on_a_document_is_lost);
}

#[test]
fn a_save_counted_too_late_is_found() {
    fails(broken::seating::a_close_waits_for_every_save_with_a_seat);
}
