//! One warp's path through the machine code of a kernel, as far as it is known without running it: its instructions,
//! in which order, with which addresses of shared and global memory.

pub mod access;
pub mod class;
pub mod lanes;
mod operand;
mod registers;
pub mod walk;
