//! A gateway that may only dial out serves its broker over the connection that it dialled; either of them is killed in the middle of an array.

use super::killed::run_on;
use super::tree::Tree;

const TASKS: usize = 200;

#[test]
fn a_child_that_dials_is_killed_and_every_task_is_done() {
    run_on(Tree::dialling(), "eu", TASKS, &["campus"], false);
}

#[test]
fn a_child_that_dials_is_killed_and_each_task_starts_once() {
    run_on(Tree::dialling(), "eu", TASKS, &["campus"], true);
}

#[test]
fn the_parent_of_a_child_that_dials_is_killed_and_every_task_is_done() {
    run_on(Tree::dialling(), "eu", TASKS, &["eu"], false);
}

#[test]
fn the_parent_of_a_child_that_dials_is_killed_and_each_task_starts_once() {
    run_on(Tree::dialling(), "eu", TASKS, &["eu"], true);
}

#[test]
fn parent_and_child_that_dials_are_killed_in_turn_and_each_task_starts_once() {
    run_on(Tree::dialling(), "eu", TASKS, &["eu", "campus", "eu"], true);
}
