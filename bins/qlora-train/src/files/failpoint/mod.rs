//! Failpoints: named places at which a test ends the process or makes a write fail, to show that neither loses
//! anything.
//!
//! The feature `failpoints` compiles them in, which this package's own tests turn on; a release binary has none of
//! them. The crate `fail` has neither an action that kills the process nor a write that is torn, so these are our own.

#[cfg(not(feature = "failpoints"))]
mod disabled;
#[cfg(feature = "failpoints")]
mod enabled;

#[cfg(not(feature = "failpoints"))]
pub(crate) use disabled::{moment, point, write};
#[cfg(feature = "failpoints")]
pub use enabled::VARIABLE;
#[cfg(feature = "failpoints")]
pub(crate) use enabled::{moment, point, write};
