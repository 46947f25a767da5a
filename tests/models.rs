//! Runs the models of the places where threads hand something over, in every possible order. `models/` compiles the
//! relay's own files over loom.

use etcd_relay_models as models;

#[test]
fn a_wake_up_beside_a_reset_is_not_lost() {
    models::a_wake_up_beside_a_reset_is_not_lost();
}

#[test]
fn a_wake_up_is_seen_or_wakes_the_task() {
    models::a_wake_up_is_seen_or_wakes_the_task();
}

#[test]
fn what_was_read_is_told() {
    models::what_was_read_is_told();
}

#[test]
fn a_follower_has_the_newest_or_is_woken() {
    models::a_follower_has_the_newest_or_is_woken();
}

#[test]
fn a_follower_that_moved_is_told_of_the_end() {
    models::a_follower_that_moved_is_told_of_the_end();
}

#[test]
fn whoever_joins_a_round_is_told_of_an_ask_that_began_after_it() {
    models::whoever_joins_a_round_is_told_of_an_ask_that_began_after_it();
}

#[test]
fn a_member_has_the_answer_or_is_woken() {
    models::a_member_has_the_answer_or_is_woken();
}

#[test]
fn what_is_pushed_beside_a_task_that_goes_to_rest_is_not_lost() {
    models::what_is_pushed_beside_a_task_that_goes_to_rest_is_not_lost();
}

#[test]
fn a_stream_that_moved_is_woken_where_it_is() {
    models::a_stream_that_moved_is_woken_where_it_is();
}

#[test]
fn whoever_joins_beside_a_publication_gets_each_revision_once() {
    models::whoever_joins_beside_a_publication_gets_each_revision_once();
}
