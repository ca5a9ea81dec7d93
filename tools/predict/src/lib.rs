//! The kernels' speed on GPUs, predicted from their machine code: cycles of a loop with the control codes that the
//! hardware obeys, blocks of the real grid on the multiprocessors, and from these the whole training step.

#![deny(unsafe_code)]

pub mod calibration;
pub mod cards;
pub mod constants;
pub mod goals;
pub mod launches;
pub mod limits;
pub mod machine;
pub mod measured;
pub mod measured_steps;
pub mod operations;
pub mod page;
pub mod rates;
pub mod schedule;
pub mod simulator;
pub mod steps;
