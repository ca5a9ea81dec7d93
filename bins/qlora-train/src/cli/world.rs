//! Processes of a planned run: as many as the flags say, or as a launcher started.

use crate::bail_usage;
use crate::comm::launch::Launch;
use crate::error::Result;
use clap::Args;

#[derive(Args)]
pub struct WorldArgs {
    /// Number of processes that will train together; the plan is for each of them [default: those that a launcher
    /// started, or 1]
    #[arg(long, value_name = "N", value_parser = number)]
    processes: Option<usize>,
    /// Number of processes on one machine, whose memory they share [default: all of them]
    #[arg(long, value_name = "N", value_parser = number)]
    processes_per_machine: Option<usize>,
}

fn number(text: &str) -> std::result::Result<usize, String> {
    match text.trim().parse() {
        Ok(number) if (1..=65_536).contains(&number) => Ok(number),
        _ => Err("expected a number of processes from 1 to 65536".to_owned()),
    }
}

/// Processes of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct World {
    pub size: usize,
    /// Processes of one machine
    pub here: usize,
}

impl World {
    pub const ALONE: Self = Self { size: 1, here: 1 };

    /// Refused: flags that say something else than the launcher, or more on a machine than there are.
    pub fn of(args: &WorldArgs, launch: Option<&Launch>) -> Result<Self> {
        if let (Some(asked), Some(Launch { launcher, world_size, .. })) = (args.processes, launch)
            && asked != *world_size
        {
            bail_usage!(
                "--processes: found {asked}, but {launcher} started {world_size} processes: leave it out, or ask without \
                 the launcher"
            );
        }
        if let (None, Some(here), None) = (args.processes, args.processes_per_machine, launch) {
            bail_usage!(
                "--processes-per-machine: found {here} without --processes, expected how many there are in all"
            );
        }
        let size = args.processes.or(launch.map(|launch| launch.world_size)).unwrap_or(1);
        let here = args.processes_per_machine.or(launch.and_then(|launch| launch.local_size)).unwrap_or(size);
        if here > size {
            bail_usage!("--processes-per-machine: found {here}, expected at most --processes, which is {size}");
        }
        Ok(Self { size, here })
    }

    pub fn machines(self) -> usize {
        self.size.div_ceil(self.here)
    }

    /// Processes of the machine with the fewest, where all others are full.
    pub fn fewest(self) -> usize {
        match self.size % self.here {
            0 => self.here,
            rest => rest,
        }
    }

    /// Bytes that each process sends, and also receives, to sum `numbers` f32 numbers over all processes.
    pub fn moved_bytes(self, numbers: u64) -> u64 {
        let others = self.size as u64 - 1;
        (8 * numbers).saturating_mul(others) / self.size as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_those_of_the_flags_or_of_the_launcher() {
        let of = |processes, processes_per_machine| {
            let args = WorldArgs { processes, processes_per_machine };
            World::of(&args, None)
        };
        assert_eq!(of(None, None).unwrap(), World::ALONE);
        assert_eq!(of(Some(16), None).unwrap(), World { size: 16, here: 16 });
        let world = of(Some(20), Some(8)).unwrap();
        assert_eq!((world, world.machines()), (World { size: 20, here: 8 }, 3));
        assert_eq!([(20, 8), (16, 8), (3, 3), (9, 8)].map(|(size, here)| World { size, here }.fewest()), [4, 8, 3, 1]);
        let error = of(None, Some(8)).unwrap_err().to_string();
        assert!(error.starts_with("--processes-per-machine: found 8 without --processes, expected"), "{error}");
        let error = of(Some(4), Some(8)).unwrap_err().to_string();
        assert_eq!(error, "--processes-per-machine: found 8, expected at most --processes, which is 4");
        assert!(number("0").is_err() && number("many").is_err() && number(" 65536 ") == Ok(65_536));
    }

    #[test]
    fn a_sum_moves_twice_what_the_others_have_of_it() {
        assert_eq!(World::ALONE.moved_bytes(1000), 0);
        let moved = [2, 4, 64].map(|size| World { size, here: size }.moved_bytes(1000));
        assert_eq!(moved, [4000, 6000, 7875]);
    }
}
