//! Properties: random operations against the reference, under every schedule.

use lab::device::{Tally, cases, device};
use lab::operation::{Operation, verify};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use qlora_kernels::device::Device;

/// At most `most` of the operations, counted under `name`, each with its seed.
pub fn checked<O: Operation>(
    name: &'static str,
    schedules: u64,
    most: u32,
    operations: impl Strategy<Value = O>,
    seed: impl Fn(&O) -> u64,
) {
    checked_and(name, schedules, most, operations, seed, |_, _, _| Ok(()));
}

/// [`checked`], and what else holds for an output.
pub fn checked_and<O: Operation>(
    name: &'static str,
    schedules: u64,
    most: u32,
    operations: impl Strategy<Value = O>,
    seed: impl Fn(&O) -> u64,
    also: impl Fn(&Device, &O, &O::Output) -> Result<(), TestCaseError>,
) {
    let tally = Tally::new(name, schedules);
    let device = device();
    let mut runner = TestRunner::new(Config { cases: cases(most), failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&operations, |operation| {
        let output = verify(&device, &operation, seed(&operation), schedules).map_err(TestCaseError::fail)?;
        also(&device, &operation, &output)?;
        tally.case();
        Ok(())
    });
    outcome.unwrap();
}
