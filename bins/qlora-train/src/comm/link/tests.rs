use super::*;
use std::io::Read;
use std::net::TcpListener;

/// Both ends of a connection.
fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (one, listener.accept().unwrap().0)
}

fn peer(process: u32) -> Peer {
    Peer { host: "a".to_owned(), machine: "b".to_owned(), processors: "0".to_owned(), process }
}

/// Rank 0 of three, and the other ends of its connections.
fn links() -> (Links, [TcpStream; 2]) {
    let ((to_one, one), (to_two, two)) = (pair(), pair());
    let long = Duration::from_secs(600);
    let streams = vec![(1, to_one), (2, to_two)];
    (Links::new(0, (0..3).map(peer).collect(), streams, long, long).unwrap(), [one, two])
}

/// A write that never ends keeps nobody from the end of the run.
#[test]
fn a_rank_that_takes_nothing_is_left_without_its_last_words() {
    let (links, [mut one, mut two]) = links();
    let writing = locked(&links.shared.others[0].writing);
    assert!(links.fail(0, "no more".to_owned()).unwrap_err().to_string().contains("no more"));
    drop(writing);
    let mut rest = Vec::new();
    // The connection is closed.
    one.read_to_end(&mut rest).unwrap();
    let frame = loop {
        let frame = wire::read(&mut two, MAX_MESSAGE, &|| ()).unwrap();
        if frame.kind != Kind::Alive {
            break frame;
        }
    };
    let told: Failure = serde_json::from_slice(&frame.bytes).unwrap();
    assert_eq!((frame.kind, told.of), (Kind::Abort, 0));
}

#[test]
fn nothing_is_sent_to_a_rank_that_is_none() {
    let (links, _others) = links();
    for rank in [0, 3, usize::MAX] {
        let errors = [links.send(rank, 1, "sum", &[]).unwrap_err(), links.receive(rank, "sum").unwrap_err()];
        assert!(errors.iter().all(|error| error.to_string().contains("no connection to rank")), "{errors:?}");
    }
}
