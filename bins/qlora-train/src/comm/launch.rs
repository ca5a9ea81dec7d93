//! Rank and world size that a launcher of several processes put into the environment.

use crate::error::Result;
use crate::refuse;

/// A launcher's variables: its name, rank, world size.
const LAUNCHERS: [(&str, &str, &str); 5] = [
    ("torchrun", "RANK", "WORLD_SIZE"),
    ("OpenMPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("MVAPICH", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    ("MPICH", "PMI_RANK", "PMI_SIZE"),
    ("SLURM", "SLURM_PROCID", "SLURM_NTASKS"),
];

/// Refuses to be one process of several: this build trains in one.
pub fn check_single_process() -> Result<()> {
    check(&|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
}

fn check(variable: &dyn Fn(&str) -> Option<String>) -> Result<()> {
    for (launcher, rank_name, size_name) in LAUNCHERS {
        let Some(size) = variable(size_name) else { continue };
        let rank = variable(rank_name);
        // A shell inside an allocation of several tasks is not one of them.
        if launcher == "SLURM" && rank.is_none() {
            continue;
        }
        let number = |text: &str| text.trim().parse::<usize>().ok();
        let Some(size) = number(&size).filter(|&size| size > 0) else {
            refuse!("environment variable {size_name}: found {size:?}, expected the number of processes ({launcher})");
        };
        if let Some(rank) = &rank
            && number(rank).is_none_or(|rank| rank >= size)
        {
            refuse!(
                "environment variable {rank_name}: found {rank:?}, expected a number below {size_name}, which is {size} \
                 ({launcher})"
            );
        }
        if size > 1 {
            refuse!(
                "{launcher} started {size} processes ({size_name}={size}), but this build trains in one process: start \
                 one, or unset {size_name} if the others are not for this run"
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> Result<()> {
        let of = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        check(&of)
    }

    #[test]
    fn one_process_is_fine_however_it_was_started() {
        with(&[]).unwrap();
        for (_, rank, size) in LAUNCHERS {
            with(&[(rank, "0"), (size, "1")]).unwrap();
        }
        with(&[("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "localhost")]).unwrap();
        // `salloc -n 4`, then a command without srun.
        with(&[("SLURM_NTASKS", "4")]).unwrap();
    }

    #[test]
    fn one_of_several_processes_is_refused_with_the_variable_and_a_remedy() {
        for (launcher, rank, size) in LAUNCHERS {
            let error = with(&[(rank, "1"), (size, "2")]).unwrap_err().to_string();
            assert!(error.contains(launcher) && error.contains(&format!("{size}=2")), "{error}");
            assert!(error.contains("unset"), "{error}");
        }
        // Also where only the size is known.
        assert!(with(&[("WORLD_SIZE", "8")]).is_err());
    }

    #[test]
    fn values_that_make_no_sense_are_refused_by_name() {
        for (rank, size, name) in [
            ("0", "x", "WORLD_SIZE"),
            ("0", "0", "WORLD_SIZE"),
            ("0", "", "WORLD_SIZE"),
            ("1", "1", "RANK"),
            ("-1", "1", "RANK"),
        ] {
            let error = with(&[("RANK", rank), ("WORLD_SIZE", size)]).unwrap_err().to_string();
            assert!(error.contains(&format!("variable {name}:")), "{error}");
        }
    }
}
