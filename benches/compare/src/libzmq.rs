//! libzmq through the crate `zmq`: blocking sockets, one thread for each.

use std::time::Instant;

use zmq::{Context, Socket, SocketType};

use crate::child::{Check, Job, Outcome, Payload, Report, Role, cpu_time, histogram, linked, listening, wait_for_go};

const ANY: &str = "tcp://127.0.0.1:*";

pub fn run(job: &Job) -> Outcome<Report> {
    let context = Context::new();
    match job.role {
        Role::Pull => {
            let socket = bind(&context, zmq::PULL)?;
            pull(&socket, job, job.count * job.peers as u64)
        }
        Role::Push => push_many(&context, job),
        Role::PushBound => {
            let socket = bind(&context, zmq::PUSH)?;
            wait_for_go()?;
            push(&socket, job, 0)
        }
        Role::PullMany => pull_many(&context, job),
        Role::Rep => rep(&context, job),
        Role::Req => req(&context, job),
        Role::Pub => publish(&context, job),
        Role::Sub => subscribe(&context, job),
    }
}

fn bind(context: &Context, kind: SocketType) -> Outcome<Socket> {
    let socket = context.socket(kind)?;
    socket.bind(ANY)?;
    say_where(&socket)?;
    Ok(socket)
}

fn say_where(socket: &Socket) -> Outcome {
    let endpoint = socket.get_last_endpoint()?.map_err(|_| "an endpoint that is no text")?;
    listening(&endpoint);
    Ok(())
}

fn dial(context: &Context, kind: SocketType, job: &Job) -> Outcome<Socket> {
    let socket = context.socket(kind)?;
    socket.connect(&job.address)?;
    Ok(socket)
}

fn pull(socket: &Socket, job: &Job, count: u64) -> Outcome<Report> {
    let mut check = Check::new(job.size);
    let mut message = zmq::Message::new();
    socket.recv(&mut message, 0)?;
    let (since, cpu) = (Instant::now(), cpu_time());
    check.message(&message)?;
    for _ in 1..count {
        socket.recv(&mut message, 0)?;
        check.message(&message)?;
    }
    Ok(Report::of(count, since, cpu))
}

fn push_many(context: &Context, job: &Job) -> Outcome<Report> {
    let sockets: Vec<Socket> = (0..job.peers).map(|_| dial(context, zmq::PUSH, job)).collect::<Outcome<_>>()?;
    linked();
    wait_for_go()?;
    together(sockets, |index, socket| push(&socket, job, (index as u64) << 48))
}

fn push(socket: &Socket, job: &Job, first: u64) -> Outcome<Report> {
    let (since, cpu) = (Instant::now(), cpu_time());
    let mut payload = Payload::new(job.size);
    for number in 0..job.count {
        socket.send(payload.number(first + number), 0)?;
    }
    Ok(Report::of(job.count, since, cpu))
}

fn pull_many(context: &Context, job: &Job) -> Outcome<Report> {
    let sockets: Vec<Socket> = (0..job.peers).map(|_| dial(context, zmq::PULL, job)).collect::<Outcome<_>>()?;
    linked();
    let left = std::sync::atomic::AtomicU64::new(job.count);
    together(sockets, |_, socket| {
        socket.set_rcvtimeo(200)?;
        let (mut check, mut message) = (Check::new(job.size), zmq::Message::new());
        let (mut started, mut got, mut last) = (None, 0, Instant::now());
        while left.load(std::sync::atomic::Ordering::Relaxed) > 0 {
            match socket.recv(&mut message, 0) {
                Ok(()) => {}
                Err(zmq::Error::EAGAIN) => continue,
                Err(error) => return Err(error.into()),
            }
            started.get_or_insert_with(|| (Instant::now(), cpu_time()));
            check.upward(&message)?;
            got += 1;
            last = Instant::now();
            left.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
        }
        let (since, cpu) = started.ok_or("a receiver got nothing")?;
        let mut report = Report::of(got, since, cpu);
        report.nanos = (last - since).as_nanos() as u64;
        Ok(report)
    })
}

fn rep(context: &Context, job: &Job) -> Outcome<Report> {
    let socket = bind(context, zmq::REP)?;
    let mut message = zmq::Message::new();
    let mut started = None;
    for _ in 0..job.count {
        socket.recv(&mut message, 0)?;
        started.get_or_insert_with(|| (Instant::now(), cpu_time()));
        socket.send(&message[..], 0)?;
    }
    let (since, cpu) = started.ok_or("nobody asked")?;
    Ok(Report::of(job.count, since, cpu))
}

fn req(context: &Context, job: &Job) -> Outcome<Report> {
    let socket = dial(context, zmq::REQ, job)?;
    linked();
    wait_for_go()?;
    let (mut payload, mut latency, mut message) = (Payload::new(job.size), histogram(), zmq::Message::new());
    let (since, cpu) = (Instant::now(), cpu_time());
    for number in 0..job.count {
        let asked = Instant::now();
        socket.send(payload.number(number), 0)?;
        socket.recv(&mut message, 0)?;
        latency.saturating_record(asked.elapsed().as_nanos() as u64);
        if message[..] != *payload.number(number) {
            return Err("a wrong answer".into());
        }
    }
    Ok(Report::of(job.count, since, cpu).with_latency(&latency))
}

fn publish(context: &Context, job: &Job) -> Outcome<Report> {
    let mut socket = context.socket(zmq::XPUB)?;
    socket.set_xpub_verbose(true)?;
    // ZMQ_XPUB_NODROP: what would be dropped waits.
    set_no_drop(&mut socket)?;
    socket.bind(ANY)?;
    say_where(&socket)?;
    wait_for_go()?;
    for _ in 0..job.peers {
        socket.recv_bytes(0)?;
    }
    let (since, cpu) = (Instant::now(), cpu_time());
    let mut payload = Payload::new(job.size);
    for number in 0..job.count {
        socket.send(payload.number(number), 0)?;
    }
    Ok(Report::of(job.count * job.peers as u64, since, cpu))
}

fn set_no_drop(socket: &mut Socket) -> Outcome {
    let on: libc::c_int = 1;
    // SAFETY: the socket lives, and the option is one int.
    let failed = unsafe {
        zmq_sys::zmq_setsockopt(
            socket.as_mut_ptr(),
            zmq_sys::ZMQ_XPUB_NODROP as libc::c_int,
            (&raw const on).cast(),
            size_of::<libc::c_int>(),
        )
    };
    if failed == 0 { Ok(()) } else { Err("ZMQ_XPUB_NODROP is not known".into()) }
}

fn subscribe(context: &Context, job: &Job) -> Outcome<Report> {
    let mut sockets = Vec::new();
    for _ in 0..job.peers {
        let socket = dial(context, zmq::SUB, job)?;
        socket.set_subscribe(b"")?;
        sockets.push(socket);
    }
    linked();
    together(sockets, |_, socket| pull(&socket, job, job.count))
}

fn together(sockets: Vec<Socket>, each: impl Fn(usize, Socket) -> Outcome<Report> + Sync) -> Outcome<Report> {
    let each = &each;
    let (since, cpu) = (Instant::now(), cpu_time());
    let reports: Vec<Outcome<Report>> = std::thread::scope(|scope| {
        let run = |(index, socket)| scope.spawn(move || each(index, socket));
        let threads: Vec<_> = sockets.into_iter().enumerate().map(run).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err("a thread panicked".into()))).collect()
    });
    let reports: Vec<Report> = reports.into_iter().collect::<Outcome<_>>()?;
    let mut all = Report::of(reports.iter().map(|report| report.messages).sum(), since, cpu);
    all.nanos = reports.iter().map(|report| report.nanos).max().unwrap_or(all.nanos);
    Ok(all)
}
