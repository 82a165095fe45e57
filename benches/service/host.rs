//! The service in a process of its own, as `explaind serve` runs it, and a client that costs little.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use clap::{Args, FromArgMatches};
use explaind::{
    api::{self, Door},
    config::Settings,
    explain::House,
    model::{Entry, Model, OpenSettings, Shelf},
    runtime::{Runtime, Scheduler, SchedulerSettings, SessionSettings},
    telemetry,
};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::bare;

/// A service that runs until this is dropped.
pub struct Host {
    child: Child,
    address: String,
}

impl Host {
    /// Starts this program again as a service. `defaults` leaves arena and memory pattern as ONNX Runtime has
    /// them.
    pub fn start(defaults: bool) -> Self {
        let program = std::env::current_exe().expect("a program has a path");
        let mut child = Command::new(program)
            .args(["host", if defaults { "defaults" } else { "production" }])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        let mut address = String::new();
        let output = child.stdout.take().expect("its output is a pipe");
        BufReader::new(output).read_line(&mut address).expect("it prints its address");
        Self { child, address: address.trim().to_owned() }
    }

    /// Its process.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// A kept-alive connection to it.
    pub fn client(&self) -> Client {
        let stream = TcpStream::connect(&self.address).expect("the service listens");
        stream.set_nodelay(true).expect("a TCP socket");
        Client { stream, buffer: vec![0; 1 << 16] }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Nothing of a bench outlives it; a child that has ended already is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `Host::start` starts: opens the bundled model, prints the address and serves until it is killed.
pub fn serve(arrangement: &str) -> anyhow::Result<()> {
    let command = Settings::augment_args(clap::Command::new("serve"));
    let flags = ["serve", "--model=sst2=models/sst2", "--addr=127.0.0.1:0", "--max-timeout-ms=600000"];
    let settings = Settings::from_arg_matches(&command.get_matches_from(flags))?;
    telemetry::start_logging(&settings.log).map_err(anyhow::Error::msg)?;
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    tokio.block_on(async {
        let engine = settings.engine.clone();
        let limits = (&settings.limits).into();
        let door = Door::build(settings)?;
        let listeners = api::listen(&door).await?;
        let address = listeners.address()?;
        let mut runtime = Runtime::load(engine.device, engine.threads as usize)?;
        if arrangement == "defaults" {
            runtime.settings = SessionSettings { arena: true, memory_pattern: true, ..runtime.settings };
        }
        let workers = engine.workers as usize;
        let model = Model::open("sst2", bare::folder(), &OpenSettings { runtime, workers })?;
        let mut models = Shelf::default();
        models.put("sst2", Entry::Ready(Arc::new(model)));
        let chunk_tokens = engine.chunk_tokens as usize;
        let scheduler =
            Scheduler::start(SchedulerSettings { workers, chunk_tokens, budget: engine.queue_tokens })
                .expect("workers");
        door.open(House { models, scheduler, limits });
        println!("{address}");
        Ok(api::serve(door, listeners, CancellationToken::new()).await?)
    })
}

/// One connection.
pub struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    /// The answer to a JSON body, which must be good.
    pub fn post(&mut self, path: &str, body: &Value) -> Value {
        let answer = self.exchange(path, &body.to_string());
        serde_json::from_slice(&answer).expect("JSON")
    }

    /// The answer's bytes, which must be good.
    pub fn exchange(&mut self, path: &str, body: &str) -> Vec<u8> {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        self.stream.write_all([head.as_bytes(), body.as_bytes()].concat().as_slice()).expect("it listens");
        let mut read = 0;
        let (start, length) = loop {
            read += self.more(read);
            let text = &self.buffer[..read];
            if let Some(end) = text.windows(4).position(|it| it == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&text[..end]).to_lowercase();
                let field = head.lines().find_map(|line| line.strip_prefix("content-length:"));
                let length: usize = field.and_then(|it| it.trim().parse().ok()).expect("a length");
                assert!(head.starts_with("http/1.1 200"), "{head}\n{}", String::from_utf8_lossy(text));
                break (end + 4, length);
            }
        };
        while read < start + length {
            read += self.more(read);
        }
        self.buffer[start..start + length].to_vec()
    }

    fn more(&mut self, read: usize) -> usize {
        if read == self.buffer.len() {
            self.buffer.resize(2 * read, 0);
        }
        let more = self.stream.read(&mut self.buffer[read..]).expect("the service answers");
        assert!(more > 0, "the service closed the connection");
        more
    }
}
