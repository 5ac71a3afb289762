//! libzmq through the crate `zmq`: blocking sockets, one thread for each.

use std::time::Instant;

use zmq::{Context, Socket, SocketType};

use crate::child::{Job, Outcome, Payload, Report, Role, histogram, load_ended, wait_for_go};

const ANY: &str = "tcp://127.0.0.1:*";

pub fn run_beside(job: &Job, load: Option<Job>) -> Outcome<Report> {
    let context = Context::new();
    if let Some(load) = load {
        let of_load = context.clone();
        std::thread::spawn(move || {
            load_ended(run(&of_load, &load));
        });
        job.wait_for_load()?;
        run(&context, job)?.say();
        // The load has no end, and the last answer may not be written yet.
        wait_for_go()?;
        std::process::exit(0);
    }
    run(&context, job)
}

fn run(context: &Context, job: &Job) -> Outcome<Report> {
    match job.role {
        Role::Pull => {
            let socket = bind(context, zmq::PULL, job)?;
            pull(&socket, job, job.count * job.peers as u64)
        }
        Role::Push => push_many(context, job),
        Role::PushBound => {
            let socket = bind(context, zmq::PUSH, job)?;
            job.wait_for_go()?;
            push(&socket, job, 0)
        }
        Role::PullMany => pull_many(context, job),
        Role::Rep => rep(context, job),
        Role::Req => req(context, job),
        Role::Pub => publish(context, job),
        Role::Sub => subscribe(context, job),
        Role::RepBeside | Role::ReqBeside => Err("that is two jobs".into()),
    }
}

fn bind(context: &Context, kind: SocketType, job: &Job) -> Outcome<Socket> {
    let socket = context.socket(kind)?;
    socket.bind(ANY)?;
    say_where(&socket, job)?;
    Ok(socket)
}

fn say_where(socket: &Socket, job: &Job) -> Outcome {
    let endpoint = socket.get_last_endpoint()?.map_err(|_| "an endpoint that is no text")?;
    job.listening(&endpoint);
    Ok(())
}

fn dial(context: &Context, kind: SocketType, job: &Job) -> Outcome<Socket> {
    let socket = context.socket(kind)?;
    socket.connect(&job.address)?;
    Ok(socket)
}

fn pull(socket: &Socket, job: &Job, count: u64) -> Outcome<Report> {
    let mut check = job.check();
    let mut message = zmq::Message::new();
    socket.recv(&mut message, 0)?;
    let start = job.start();
    check.message(&message)?;
    for _ in 1..count {
        socket.recv(&mut message, 0)?;
        check.message(&message)?;
    }
    Ok(start.report(count))
}

fn push_many(context: &Context, job: &Job) -> Outcome<Report> {
    let sockets: Vec<Socket> = (0..job.peers).map(|_| dial(context, zmq::PUSH, job)).collect::<Outcome<_>>()?;
    job.linked();
    job.wait_for_go()?;
    together(job, sockets, |index, socket| push(&socket, job, (index as u64) << 48))
}

fn push(socket: &Socket, job: &Job, first: u64) -> Outcome<Report> {
    let start = job.start();
    let mut payload = Payload::new(job.size);
    for number in 0..job.count {
        socket.send(payload.number(first + number), 0)?;
    }
    Ok(start.report(job.count))
}

fn pull_many(context: &Context, job: &Job) -> Outcome<Report> {
    let sockets: Vec<Socket> = (0..job.peers).map(|_| dial(context, zmq::PULL, job)).collect::<Outcome<_>>()?;
    job.linked();
    let left = std::sync::atomic::AtomicU64::new(job.count);
    together(job, sockets, |_, socket| {
        socket.set_rcvtimeo(200)?;
        let (mut check, mut message) = (job.check(), zmq::Message::new());
        let (mut started, mut got, mut last) = (None, 0, Instant::now());
        while left.load(std::sync::atomic::Ordering::Relaxed) > 0 {
            match socket.recv(&mut message, 0) {
                Ok(()) => {}
                Err(zmq::Error::EAGAIN) => continue,
                Err(error) => return Err(error.into()),
            }
            started.get_or_insert_with(|| job.start());
            check.upward(&message)?;
            got += 1;
            last = Instant::now();
            left.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
        }
        let start = started.ok_or("a receiver got nothing")?;
        let mut report = start.report(got);
        report.nanos = (last - start.since).as_nanos() as u64;
        Ok(report)
    })
}

fn rep(context: &Context, job: &Job) -> Outcome<Report> {
    let socket = bind(context, zmq::REP, job)?;
    let mut message = zmq::Message::new();
    let mut started = None;
    for _ in 0..job.count {
        socket.recv(&mut message, 0)?;
        started.get_or_insert_with(|| job.start());
        socket.send(&message[..], 0)?;
    }
    let start = started.ok_or("nobody asked")?;
    Ok(start.report(job.count))
}

fn req(context: &Context, job: &Job) -> Outcome<Report> {
    let socket = dial(context, zmq::REQ, job)?;
    job.linked();
    job.wait_for_go()?;
    let (mut payload, mut latency, mut message) = (Payload::new(job.size), histogram(), zmq::Message::new());
    let start = job.start();
    for number in 0..job.count {
        let asked = Instant::now();
        socket.send(payload.number(number), 0)?;
        socket.recv(&mut message, 0)?;
        latency.saturating_record(asked.elapsed().as_nanos() as u64);
        if message[..] != *payload.number(number) {
            return Err("a wrong answer".into());
        }
    }
    Ok(start.report(job.count).with_latency(&latency))
}

fn publish(context: &Context, job: &Job) -> Outcome<Report> {
    let mut socket = context.socket(zmq::XPUB)?;
    socket.set_xpub_verbose(true)?;
    // ZMQ_XPUB_NODROP: what would be dropped waits.
    set_no_drop(&mut socket)?;
    socket.bind(ANY)?;
    say_where(&socket, job)?;
    job.wait_for_go()?;
    for _ in 0..job.peers {
        socket.recv_bytes(0)?;
    }
    let start = job.start();
    let mut payload = Payload::new(job.size);
    for number in 0..job.count {
        socket.send(payload.number(number), 0)?;
    }
    Ok(start.report(job.count * job.peers as u64))
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
    job.linked();
    together(job, sockets, |_, socket| pull(&socket, job, job.count))
}

fn together(
    job: &Job,
    sockets: Vec<Socket>,
    each: impl Fn(usize, Socket) -> Outcome<Report> + Sync,
) -> Outcome<Report> {
    let each = &each;
    let start = job.start();
    let reports: Vec<Outcome<Report>> = std::thread::scope(|scope| {
        let run = |(index, socket)| scope.spawn(move || each(index, socket));
        let threads: Vec<_> = sockets.into_iter().enumerate().map(run).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err("a thread panicked".into()))).collect()
    });
    let reports: Vec<Report> = reports.into_iter().collect::<Outcome<_>>()?;
    let mut all = start.report(reports.iter().map(|report| report.messages).sum());
    all.nanos = reports.iter().map(|report| report.nanos).max().unwrap_or(all.nanos);
    Ok(all)
}
