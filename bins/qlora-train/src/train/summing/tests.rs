use super::*;

fn means(asked: Option<Sums>, gpu: &str, nccl: Result<&str, &str>) -> Means {
    let nccl = nccl.map(str::to_owned).map_err(str::to_owned);
    Means { asked, gpu: Some(gpu.to_owned()), nccl }
}

fn decided(all: &[Means], recorded: Option<Sums>, by_itself: bool) -> Result<(Sums, String)> {
    let names: Vec<String> = (0..all.len()).map(|rank| format!("rank {rank}")).collect();
    decide(all, &names, recorded.map(Sums::in_words), by_itself)
}

#[test]
fn nccl_is_used_where_all_ranks_can_unless_something_else_is_said() {
    let both = |asked| [means(asked, "a", Ok("2.27.3")), means(asked, "b", Ok("2.27.3"))];
    let way = |asked, recorded, by_itself| decided(&both(asked), recorded, by_itself).unwrap().0;
    assert_eq!(way(None, None, true), Sums::Nccl);
    assert_eq!(way(None, None, false), Sums::Host);
    assert_eq!(way(Some(Sums::Nccl), None, false), Sums::Nccl);
    assert_eq!(way(Some(Sums::Host), None, true), Sums::Host);
    // A run that goes on adds up as it began; whoever asks for something else is refused by its identity.
    assert_eq!(way(None, Some(Sums::Host), true), Sums::Host);
    assert_eq!(way(None, Some(Sums::Nccl), false), Sums::Nccl);
    assert_eq!(way(Some(Sums::Nccl), Some(Sums::Host), true), Sums::Nccl);
}

#[test]
fn what_keeps_ranks_from_nccl_is_said_or_refused_by_name() {
    let good = || means(None, "a", Ok("2.27.3"));
    for (other, words) in [
        (means(None, "b", Err("no NCCL: libnccl.so.2")), "rank 1: no NCCL: libnccl.so.2"),
        (means(None, "b", Ok("2.18.1")), "rank 1 has NCCL 2.18.1, rank 0 has 2.27.3"),
        (means(None, "a", Ok("2.27.3")), "rank 0 and rank 1 share one GPU"),
    ] {
        let (sums, why) = decided(&[good(), other.clone()], None, true).unwrap();
        assert!(sums == Sums::Host && why.contains(words), "{why:?}");
        let asked = |means| Means { asked: Some(Sums::Nccl), ..means };
        let error = decided(&[asked(good()), asked(other)], None, true).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains(words), "{error}");
    }
    // A run that began by NCCL is neither changed nor overwritten.
    let others = [good(), means(None, "b", Err("no NCCL: libnccl.so.2"))];
    let error = decided(&others, Some(Sums::Nccl), true).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("NCCL, which cannot be used now: rank 1: "), "{error}");
    assert_eq!(decided(&others, Some(Sums::Host), true).unwrap().0, Sums::Host);
    let error = decided(&[good(), means(Some(Sums::Nccl), "b", Ok("2.27.3"))], None, true).unwrap_err();
    let expected = "environment variable QLORA_SUMS: nccl for rank 1, nothing for rank 0; set it alike for all ranks";
    assert_eq!(error.to_string(), expected);
    let error = asked(Some("tree")).unwrap_err().to_string();
    assert_eq!(error, "environment variable QLORA_SUMS: found \"tree\", expected \"nccl\" or \"host\"");
    let error = asked(Some("mpi")).unwrap_err().to_string();
    assert!(error.ends_with(": MPI moves sums in the memory of the host, with QLORA_COMM=mpi"), "{error}");
    assert_eq!(asked(Some(" host ")).unwrap(), Some(Sums::Host));
}
