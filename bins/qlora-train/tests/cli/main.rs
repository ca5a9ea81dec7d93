//! The binary from end to end, on tiny random models: what it writes, what it says, and what it refuses.

mod arithmetic;
mod before;
mod bench;
mod console;
mod disk;
mod evaluation;
mod generate;
mod going_on;
mod interrupted;
mod killed;
mod launched;
mod outputs;
mod parameters;
mod preview;
mod quantized;
mod refused_data;
mod refused_models;
mod refused_runs;
mod resume;
mod resume_refused;
mod same_run;
mod sandbox;
mod settings;
mod signals;
mod usage;
mod weighted;
