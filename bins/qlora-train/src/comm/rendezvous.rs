//! The rendezvous of the processes of a launch: rank 0 listens, the others connect to it and introduce themselves with
//! their own ports, and once all have the list of ranks, each connects to those before it.
//!
//! Nothing is encrypted or signed: the ports are for a network whose machines trust each other. Where rank 0 listens on
//! the loopback, so do all.

use super::launch::Launch;
use super::link::{Links, Peer};
use super::wire::{self, Frame, Kind};
use crate::bail_usage;
use crate::error::{Context, Error, Result};
use crate::report::status;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::iter;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// Version of the protocol between ranks
const PROTOCOL: u32 = 1;
/// Answers list all ranks; an introduction is short.
const MAX_ANSWER_BYTES: u64 = 16 << 20;
const MAX_INTRODUCTION_BYTES: u64 = 1 << 16;
/// Pause between two attempts
const PAUSE: Duration = Duration::from_millis(20);
/// Time in which a new connection must introduce itself
const INTRODUCTION: Duration = Duration::from_secs(5);

/// Times that the processes wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For all to be there
    pub join: Duration,
    /// For a sign of life
    pub silence: Duration,
    /// For a living rank to join an operation
    pub stall: Duration,
}

impl Timeouts {
    /// Variables of the environment, in seconds, with their defaults
    const JOIN: (&str, f64) = ("QLORA_JOIN_SECONDS", 300.0);
    const SILENCE: (&str, f64) = ("QLORA_SILENCE_SECONDS", 60.0);
    const STALL: (&str, f64) = ("QLORA_STALL_SECONDS", 1800.0);

    /// Times that the environment gives. Refused: no number of seconds.
    pub fn of_environment() -> Result<Self> {
        let seconds = |(name, default): (&str, f64)| {
            let Some(text) = std::env::var_os(name) else { return Ok(Duration::from_secs_f64(default)) };
            let text = text.to_string_lossy();
            match text.trim().parse::<f64>().ok().filter(|seconds| (0.1..=86400.0).contains(seconds)) {
                Some(seconds) => Ok(Duration::from_secs_f64(seconds)),
                None => bail_usage!("environment variable {name}: found {text:?}, expected seconds from 0.1 to 86400"),
            }
        };
        Ok(Self { join: seconds(Self::JOIN)?, silence: seconds(Self::SILENCE)?, stall: seconds(Self::STALL)? })
    }
}

/// First message of a process that connects.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Introduction {
    protocol: u32,
    rank: usize,
    world_size: usize,
    /// Version, commit and kernels of the program
    build: String,
    /// Name of the launcher's job
    job: String,
    peer: Peer,
    /// Port at which it listens for those after it; 0 for rank 0
    port: u16,
}

/// Answer of rank 0.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Answer {
    /// All have arrived: each with its address, as rank 0 sees it.
    Welcome(Places),
    Refused(String),
}

/// Processes by rank, with the address at which each listens
type Places = Vec<(Peer, SocketAddr)>;

/// Connections, each with its rank
type Streams = Vec<(usize, TcpStream)>;

/// A rank that has come.
struct Come {
    peer: Peer,
    address: SocketAddr,
    stream: TcpStream,
}

/// Connects this process with the others of its launch.
pub(super) fn join(launch: &Launch, build: &str, timeouts: Timeouts) -> Result<Links> {
    let mut own = Introduction {
        protocol: PROTOCOL,
        rank: launch.rank,
        world_size: launch.world_size,
        build: build.to_owned(),
        job: launch.job.clone(),
        peer: this_process(),
        port: 0,
    };
    let deadline = Instant::now() + timeouts.join;
    let (peers, streams) = match launch.rank {
        0 => gather(launch, own, deadline, timeouts.join)?,
        _ => {
            let (listener, places, first) = come(launch, &mut own, deadline, timeouts.join)?;
            let streams = go_round(&own, &listener, &places, first, deadline)?;
            (places.into_iter().map(|(peer, _)| peer).collect(), streams)
        }
    };
    Links::new(launch.rank, peers, streams, timeouts.silence, timeouts.stall)
}

pub(super) fn this_process() -> Peer {
    let host = sysinfo::System::host_name().unwrap_or_else(|| "this machine".to_owned());
    // One for all containers of a machine, whatever they call it.
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let machine = if boot.is_empty() { host.clone() } else { boot.trim().to_owned() };
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let processors = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let processors = processors.map_or_else(String::new, |list| list.trim().to_owned());
    Peer { host, machine, processors, process: std::process::id() }
}

fn addresses(launch: &Launch) -> std::io::Result<Vec<SocketAddr>> {
    (launch.address.as_str(), launch.port).to_socket_addrs().map(Iterator::collect)
}

/// True if all processes are on one machine, by the address, and listen on the loopback only.
fn names_loopback(launch: &Launch) -> bool {
    launch.address == "localhost" || launch.address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The wildcard address of this machine, of the IP version by which the others connect.
fn any_address(is_ipv6: bool) -> IpAddr {
    if is_ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }
}

fn listen(launch: &Launch) -> Result<TcpListener> {
    let place = format!("{}:{}", launch.address, launch.port);
    let found = addresses(launch)
        .usage_context(|| format!("environment variable MASTER_ADDR: {:?} cannot be found", launch.address))?;
    let is_ipv6 = !found.is_empty() && found.iter().all(SocketAddr::is_ipv6);
    let everywhere = || TcpListener::bind((any_address(is_ipv6), launch.port));
    let listener = match names_loopback(launch) {
        // A machine may call itself by a name that leads others to it and itself to the loopback.
        false if found.iter().any(|address| address.ip().is_loopback()) => everywhere(),
        _ => match TcpListener::bind(&found[..]) {
            // The address of another network, behind which this machine is.
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => everywhere(),
            bound => bound,
        },
    };
    listener.usage_context(|| {
        format!(
            "rank 0 cannot listen at {place} (MASTER_ADDR, MASTER_PORT); choose another port, as by `torchrun \
             --master-port` or MASTER_PORT"
        )
    })
}

/// Rank 0 waits until every other rank has come.
fn gather(launch: &Launch, own: Introduction, deadline: Instant, patience: Duration) -> Result<(Vec<Peer>, Streams)> {
    let what = || format!("rank 0 at {}:{}", launch.address, launch.port);
    let listener = listen(launch)?;
    listener.set_nonblocking(true).context(what)?;
    status!(
        "{} processes (started by {}): rank 0 waits for the others at {}:{}",
        launch.world_size,
        launch.launcher,
        launch.address,
        launch.port
    );
    let mut come: BTreeMap<usize, Come> = BTreeMap::new();
    // A sentence on rejected processes, for the error if a rank is missing in the end.
    let mut turned_away = String::new();
    while come.len() + 1 < launch.world_size {
        if Instant::now() >= deadline {
            let missing: Vec<String> =
                (1..launch.world_size).filter(|rank| !come.contains_key(rank)).map(|rank| rank.to_string()).collect();
            let (seconds, s) = (patience.as_secs_f64(), if missing.len() == 1 { "" } else { "s" });
            let by = if launch.launcher == "SLURM" { "; `srun` starts all of them" } else { "" };
            let text = format!(
                "rank{s} {} of {} did not come to {}:{} within {seconds} s: {} started {} processes, so start them \
                 all, with the same MASTER_ADDR and MASTER_PORT (QLORA_JOIN_SECONDS waits longer){by}{turned_away}",
                missing.join(", "),
                launch.world_size,
                launch.address,
                launch.port,
                launch.launcher,
                launch.world_size
            );
            return refused_by_all(&come, None, text);
        }
        let (stream, address) = match listener.accept() {
            Ok(accepted) => accepted,
            // One that leaves while it is let in, or no handle left for now: others may yet come.
            Err(error) => {
                if ![ErrorKind::WouldBlock, ErrorKind::Interrupted].contains(&error.kind()) {
                    turned_away = format!("; one that came could not be let in ({error})");
                }
                std::thread::sleep(PAUSE);
                continue;
            }
        };
        // Any other connection to the port is no rank.
        let Some(other) = introduction(&stream) else { continue };
        // The run is not to blame for another one that comes to its port.
        if let Some(text) = of_another_job(&own, &other) {
            turned_away = format!("; {text}");
            let _ = answer(&stream, &Answer::Refused(text));
            continue;
        }
        if let Some(text) = unfit(&own, &other, come.get(&other.rank).map(|come| &come.peer)) {
            return refused_by_all(&come, Some(&stream), text);
        }
        let address = SocketAddr::new(address.ip(), other.port);
        come.insert(other.rank, Come { peer: other.peer, address, stream });
    }
    let here = listener.local_addr().context(what)?;
    let places: Places =
        iter::once((own.peer, here)).chain(come.values().map(|come| (come.peer.clone(), come.address))).collect();
    for (rank, Come { peer, stream, .. }) in &come {
        answer(stream, &Answer::Welcome(places.clone())).context(|| peer.name(*rank))?;
    }
    let peers = places.into_iter().map(|(peer, _)| peer).collect();
    Ok((peers, come.into_iter().map(|(rank, come)| (rank, come.stream)).collect()))
}

/// Ends the rendezvous, and sends everyone the reason.
fn refused_by_all<T>(come: &BTreeMap<usize, Come>, last: Option<&TcpStream>, text: String) -> Result<T> {
    let refusal = Answer::Refused(text.clone());
    for stream in come.values().map(|come| &come.stream).chain(last) {
        // A process that has left need not get the reason.
        let _ = answer(stream, &refusal);
    }
    Err(Error::Refused(text))
}

/// Reads from a connection up to a moment, however slowly its bytes come.
struct Until<'a>(&'a TcpStream, Instant);

impl Read for Until<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = self.1.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        self.0.set_read_timeout(Some(left))?;
        self.0.read(buffer)
    }
}

fn introduction(stream: &TcpStream) -> Option<Introduction> {
    stream.set_nonblocking(false).ok()?;
    stream.set_write_timeout(Some(INTRODUCTION)).ok()?;
    introduced(&mut Until(stream, Instant::now() + INTRODUCTION))
}

/// The introduction of a new connection. None: it is no process of this program.
fn introduced(from: &mut impl Read) -> Option<Introduction> {
    let frame = wire::read(from, MAX_INTRODUCTION_BYTES, &|| ()).ok()?;
    serde_json::from_slice(&frame.bytes).ok().filter(|_| frame.kind == Kind::Join)
}

/// The number of ranks that rank 0 of four accepts from these bytes, for tests of the parser.
pub(super) fn taken(mut bytes: &[u8]) -> usize {
    let (build, job) = ("0.1.0".to_owned(), "7".to_owned());
    let peer = Peer { host: "a".to_owned(), machine: "b".to_owned(), processors: "0-3".to_owned(), process: 1 };
    let own = Introduction { protocol: PROTOCOL, rank: 0, world_size: 4, build, job, peer, port: 0 };
    let mut come: BTreeMap<usize, Peer> = BTreeMap::new();
    while !bytes.is_empty() {
        let Some(other) = introduced(&mut bytes) else { continue };
        if of_another_job(&own, &other).is_none() && unfit(&own, &other, come.get(&other.rank)).is_none() {
            come.insert(other.rank, other.peer);
        }
    }
    come.len()
}

/// The number of ranks in an answer of rank 0, if these bytes are one, for tests of the parser.
pub(super) fn welcomed(bytes: &[u8]) -> Option<usize> {
    match serde_json::from_slice(bytes).ok()? {
        Answer::Welcome(places) => Some(places.len()),
        Answer::Refused(_) => None,
    }
}

fn answer(mut stream: &TcpStream, answer: &Answer) -> std::io::Result<()> {
    let bytes = serde_json::to_vec(answer)?;
    wire::write(&mut stream, Kind::Join, 0, "", &[&bytes])
}

/// The reason why a process belongs to another launch, where the launcher names its jobs.
fn of_another_job(own: &Introduction, other: &Introduction) -> Option<String> {
    let (here, there) = (own.peer.name(own.rank), other.peer.name(other.rank));
    let told = || {
        format!(
            "{there} is of another job ({:?}, {here} is of {:?}): give each job a MASTER_PORT of its own",
            other.job, own.job
        )
    };
    (own.job != other.job).then(told)
}

/// The reason why a process cannot join the run, from its introduction and rank 0's own.
fn unfit(own: &Introduction, other: &Introduction, earlier: Option<&Peer>) -> Option<String> {
    let (here, there) = (own.peer.name(own.rank), other.peer.name(other.rank));
    if (own.protocol, &own.build) != (other.protocol, &other.build) {
        return Some(format!(
            "{there} runs another program, {} instead of {} as {here} does: install the same one everywhere",
            other.build, own.build
        ));
    }
    if own.world_size != other.world_size {
        return Some(format!(
            "{there} was started as one of {} processes, {here} as one of {}: start all of them by one launch",
            other.world_size, own.world_size
        ));
    }
    if other.rank == 0 || other.rank >= own.world_size {
        return Some(format!("{there}: expected a rank from 1 to {}", own.world_size - 1));
    }
    earlier.map(|earlier| format!("{there} and {} have the same rank: start each rank once", earlier.name(other.rank)))
}

/// Connects a rank other than 0 to rank 0, which answers with the addresses of all ranks.
fn come(
    launch: &Launch,
    own: &mut Introduction,
    deadline: Instant,
    patience: Duration,
) -> Result<(TcpListener, Places, TcpStream)> {
    let place = format!("{}:{}", launch.address, launch.port);
    let left = || deadline.saturating_duration_since(Instant::now());
    let late = |why: String| {
        let seconds = patience.as_secs_f64();
        Error::Refused(format!(
            "found no rank 0 at {place} (MASTER_ADDR, MASTER_PORT) within {seconds} s: {why}; start all processes by \
             one launch (QLORA_JOIN_SECONDS waits longer)"
        ))
    };
    let mut why = "nothing answers".to_owned();
    loop {
        if left().is_zero() {
            return Err(late(why));
        }
        match connect(launch, left()) {
            Ok(stream) => {
                let what = || format!("the connection to rank 0 at {place}");
                // Rank 0 waits as long at most, and says then who is missing.
                let answered = Instant::now() + patience + INTRODUCTION;
                let here = stream.local_addr().context(what)?.ip();
                let here = if names_loopback(launch) { here } else { any_address(here.is_ipv6()) };
                let listener = TcpListener::bind((here, 0)).context(what)?;
                own.port = listener.local_addr().context(what)?.port();
                let said = serde_json::to_vec(own).context(what)?;
                let asked = wire::write(&mut &stream, Kind::Join, 0, "", &[&said]);
                match asked.and_then(|()| wire::read(&mut Until(&stream, answered), MAX_ANSWER_BYTES, &|| ())) {
                    Ok(Frame { kind: Kind::Join, bytes, .. }) => match serde_json::from_slice(&bytes) {
                        Ok(Answer::Welcome(places)) if places.len() == launch.world_size => {
                            return Ok((listener, places, stream));
                        }
                        Ok(Answer::Refused(text)) => return Err(Error::Refused(text)),
                        _ => why = "the program that listens there gives an unknown answer".to_owned(),
                    },
                    Ok(_) => why = "the program that listens there does not answer as rank 0 does".to_owned(),
                    Err(error) => why = unanswered(&error),
                }
            }
            Err(error) => why = error.to_string(),
        }
        std::thread::sleep(PAUSE.min(left()));
    }
}

/// The reason why the listener at rank 0's address has not answered.
fn unanswered(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            "the program that listens there does not answer: it is stopped or hangs".to_owned()
        }
        _ => format!("the program that listens there does not answer as rank 0 does ({error})"),
    }
}

/// Connects a rank with the others beside rank 0: it connects to those before it, and accepts those after it.
fn go_round(
    own: &Introduction,
    listener: &TcpListener,
    places: &[(Peer, SocketAddr)],
    first: TcpStream,
    deadline: Instant,
) -> Result<Streams> {
    // The last rank to come has yet to hear of the others.
    let deadline = deadline.max(Instant::now() + INTRODUCTION);
    let said = serde_json::to_vec(own).context(|| "an introduction".to_owned())?;
    let of_first = first.peer_addr().context(|| "the connection to rank 0".to_owned())?.ip();
    let mut streams = vec![(0, first)];
    for (rank, (peer, address)) in places.iter().enumerate().take(own.rank).skip(1) {
        // Those of rank 0's machine may have come to it by the loopback.
        let is_beside_first = address.ip().is_loopback() && peer.machine != own.peer.machine;
        let address = &if is_beside_first { SocketAddr::new(of_first, address.port()) } else { *address };
        let left = deadline.saturating_duration_since(Instant::now()).max(PAUSE);
        let stream = TcpStream::connect_timeout(address, left).and_then(|stream| {
            wire::write(&mut &stream, Kind::Join, 0, "", &[&said])?;
            Ok(stream)
        });
        let what = || {
            format!(
                "cannot reach {} at {address}: all machines of a run have to reach each other at any port",
                peer.name(rank)
            )
        };
        streams.push((rank, stream.context(what)?));
    }
    listener.set_nonblocking(true).context(|| "a connection to another rank".to_owned())?;
    while streams.len() + 1 < places.len() {
        if Instant::now() >= deadline {
            let missing = (own.rank + 1..places.len()).find(|rank| streams.iter().all(|(other, _)| other != rank));
            let rank = missing.unwrap_or_default();
            return Err(Error::Failed(format!(
                "{} did not come to rank {} in time: all machines of a run have to reach each other at any port \
                 (QLORA_JOIN_SECONDS waits longer)",
                places[rank].0.name(rank),
                own.rank
            )));
        }
        let Ok((stream, _)) = listener.accept() else {
            std::thread::sleep(PAUSE);
            continue;
        };
        let Some(other) = introduction(&stream) else { continue };
        let is_known = other.rank > own.rank && places.get(other.rank).is_some_and(|(peer, _)| *peer == other.peer);
        if is_known && streams.iter().all(|(rank, _)| *rank != other.rank) {
            streams.push((other.rank, stream));
        }
    }
    Ok(streams)
}

fn connect(launch: &Launch, left: Duration) -> std::io::Result<TcpStream> {
    let mut failed = std::io::Error::new(ErrorKind::NotFound, "its name has no address");
    for address in addresses(launch)? {
        match TcpStream::connect_timeout(&address, left.clamp(PAUSE, INTRODUCTION)) {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Systems name a read that came to its limit in two ways.
    #[test]
    fn a_rank_0_that_is_stopped_is_not_called_an_error_of_the_system() {
        for kind in [ErrorKind::WouldBlock, ErrorKind::TimedOut] {
            let expected = "the program that listens there does not answer: it is stopped or hangs";
            assert_eq!(unanswered(&kind.into()), expected);
        }
        let closed = unanswered(&ErrorKind::UnexpectedEof.into());
        assert!(closed.starts_with("the program that listens there does not answer as rank 0 does ("), "{closed}");
    }
}
