use super::*;

/// Over TCP, unless the variables say otherwise.
fn with(variables: &[(&str, &str)]) -> Result<Option<Launch>> {
    let variables = [variables, &[(WAY, "tcp")][..]].concat();
    let of = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    detect(&of)
}

#[test]
fn the_way_is_that_of_the_build_and_the_launcher_or_the_one_asked_for() {
    for launcher in &LAUNCHERS {
        let own = [(launcher.rank, "1"), (launcher.size, "2"), ("MASTER_ADDR", "a")];
        let way = |value| with(&[&own[..], &[(WAY, value)][..]].concat());
        assert_eq!(way(" tcp ").unwrap().unwrap().way, Way::Tcp);
        let of_launcher = MPI.filter(|_| OF_MPI.contains(&launcher.name)).unwrap_or(Way::Tcp);
        assert_eq!(way("").unwrap().unwrap().way, of_launcher, "{}", launcher.name);
        match (MPI, way("mpi")) {
            (Some(mpi), Ok(launch)) => assert_eq!(launch.map(|launch| launch.way), Some(mpi)),
            (None, Err(error)) => {
                assert!(error.to_string().contains("rebuild it with `--features mpi`"), "{error}")
            }
            found => panic!("{found:?}"),
        }
        let error = way("nccl").unwrap_err().to_string();
        assert_eq!(error, "environment variable QLORA_COMM: found \"nccl\", expected \"tcp\" or \"mpi\"");
    }
    // One process meets nobody.
    assert_eq!(with(&[("RANK", "0"), ("WORLD_SIZE", "1"), (WAY, "x")]).unwrap(), None);
}

#[test]
fn one_process_is_alone_however_it_was_started() {
    assert_eq!(with(&[]).unwrap(), None);
    for launcher in &LAUNCHERS {
        assert_eq!(with(&[(launcher.rank, "0"), (launcher.size, "1")]).unwrap(), None);
    }
    let torchrun = [("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "localhost")];
    assert_eq!(with(&torchrun).unwrap(), None);
    assert_eq!(with(&[("WORLD_SIZE", "1")]).unwrap(), None);
    // A command without srun after `salloc -n 4`, and in a script of `sbatch -n 4`.
    assert_eq!(with(&[("SLURM_NTASKS", "4")]).unwrap(), None);
    assert_eq!(with(&[("SLURM_NTASKS", "4"), ("SLURM_PROCID", "0"), ("SLURM_LOCALID", "0")]).unwrap(), None);
}

#[test]
fn each_launcher_is_recognized_and_meets_where_it_says() {
    for launcher in &LAUNCHERS {
        let more = [("MASTER_ADDR", "node-1"), ("MASTER_PORT", "1234"), (launcher.local_rank, "1")];
        let launch = with(&[&[(launcher.rank, "3"), (launcher.size, "4")], &more[..]].concat()).unwrap().unwrap();
        assert_eq!((launch.launcher, launch.rank, launch.world_size), (launcher.name, 3, 4));
        assert_eq!((launch.address.as_str(), launch.port, launch.local_rank), ("node-1", 1234, Some(1)));
        assert_eq!(launch.local_size, None);
    }
    // Processes of one machine need no address.
    for launcher in LAUNCHERS.iter().filter(|launcher| !launcher.local_size.is_empty()) {
        let launch = with(&[(launcher.rank, "0"), (launcher.size, "2"), (launcher.local_size, "2")]);
        let launch = launch.unwrap().unwrap();
        assert_eq!((launch.address.as_str(), launch.port, launch.local_size), ("127.0.0.1", PORT, Some(2)));
    }
    let step = [("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "2"), ("SLURM_NNODES", "1")];
    let slurm = [&step[..], &[("SLURM_JOB_ID", "77"), ("SLURM_STEP_ID", "3")]].concat();
    let launch = with(&slurm).unwrap().unwrap();
    assert_eq!((launch.address.as_str(), launch.job.as_str()), ("127.0.0.1", "77.3"));
    assert_eq!(launch.local_size, Some(2));
    for (nodes, local_size) in [("2", Some(4)), ("3", Some(3)), ("16", Some(1)), ("0", None), ("a", None)] {
        let step = [("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "8"), ("SLURM_STEP_NUM_NODES", nodes)];
        let launch = with(&[&step[..], &[("SLURM_NNODES", "1"), ("MASTER_ADDR", "a")]].concat());
        assert_eq!(launch.unwrap().unwrap().local_size, local_size, "{nodes}");
    }
    // torchrun within a job of SLURM: its own numbers count.
    let both = [("RANK", "5"), ("WORLD_SIZE", "8"), ("MASTER_ADDR", "a")];
    assert_eq!(with(&[&both[..], &slurm[..]].concat()).unwrap().unwrap().world_size, 8);
}

/// Names of other launchers' jobs do not count: all of them may run within one of another.
#[test]
fn a_job_has_the_name_that_its_own_launcher_gives() {
    let all: Vec<_> = LAUNCHERS.iter().flat_map(|launcher| launcher.job).map(|name| (*name, *name)).collect();
    for launcher in &LAUNCHERS {
        let own = [(launcher.rank, "0"), (launcher.size, "2"), ("MASTER_ADDR", "a")];
        let launch = with(&[&own[..], &all[..]].concat()).unwrap().unwrap();
        assert_eq!((launch.launcher, launch.job), (launcher.name, launcher.job.join(".")));
        assert_eq!(with(&own).unwrap().unwrap().job, "");
    }
}

#[test]
fn a_port_at_which_torchrun_listens_is_left_to_it() {
    let port = |port: &str, store: &str| {
        let torchrun = [("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "a"), ("MASTER_PORT", port)];
        with(&[&torchrun[..], &[("TORCHELASTIC_USE_AGENT_STORE", store)]].concat()).unwrap().unwrap().port
    };
    assert_eq!([port("29500", "True"), port("29500", "False"), port("65535", "True")], [29501, 29500, 65534]);
}

#[test]
fn processes_of_several_machines_need_an_address() {
    for launcher in &LAUNCHERS {
        let error = with(&[(launcher.rank, "1"), (launcher.size, "2"), (launcher.local_size, "1")]);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("MASTER_ADDR") && error.contains(launcher.name), "{error}");
    }
    let slurm = [("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "2"), ("SLURM_NNODES", "2")];
    assert!(with(&slurm).unwrap_err().to_string().contains("scontrol"));
}

#[test]
fn values_that_make_no_sense_are_refused_by_name() {
    for (rank, size, name) in [
        (Some("0"), "x", "WORLD_SIZE"),
        (Some("0"), "0", "WORLD_SIZE"),
        (Some("0"), "", "WORLD_SIZE"),
        (Some("1"), "1", "RANK"),
        (Some("-1"), "1", "RANK"),
        (Some("2"), "2", "RANK"),
        (None, "8", "RANK"),
    ] {
        let variables: Vec<_> = rank.map(|rank| ("RANK", rank)).into_iter().chain([("WORLD_SIZE", size)]).collect();
        let error = with(&variables).unwrap_err().to_string();
        assert!(error.contains(&format!("variable {name}:")), "{error}");
    }
    for (name, value) in [("MASTER_PORT", "0"), ("MASTER_PORT", "70000"), ("LOCAL_RANK", "one")] {
        let torchrun = [("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "a"), (name, value)];
        let error = with(&torchrun).unwrap_err().to_string();
        assert!(error.contains(&format!("variable {name}: found")), "{error}");
    }
}
