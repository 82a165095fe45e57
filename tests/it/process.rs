//! The program from outside: its settings, its errors, its signals, and clients that go away.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

const MODEL: &str = "--model=sst2=models/sst2";

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// A request that takes far longer than any test.
fn endless() -> Value {
    json!({ "inputs": vec!["good ".repeat(400); 32], "timeout_ms": 60_000 })
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_explaind"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).env("EXPLAIND_DEVICE", "cpu");
    command
}

fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    command(arguments).envs(variables.iter().copied()).output().expect("the program runs")
}

fn told(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::Builder::new().suffix(".toml").tempfile().expect("a temporary file");
    file.write_all(text.as_bytes()).expect("a writable file");
    file
}

/// A running service; dropping it kills it.
struct Running {
    child: Child,
    address: String,
    client: reqwest::Client,
}

impl Running {
    fn start(arguments: &[&str]) -> Self {
        Self::start_with(&[&[MODEL], arguments].concat())
    }

    fn start_with(arguments: &[&str]) -> Self {
        let all = [&["serve", "--addr=127.0.0.1:0", "--log=warn"], arguments].concat();
        let mut child =
            command(&all).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the program runs");
        let mut greeting = String::new();
        let stdout = child.stdout.as_mut().expect("a piped output");
        BufReader::new(stdout).read_line(&mut greeting).expect("a greeting");
        let address = greeting.split("http://").nth(1).and_then(|it| it.split(',').next());
        let address = address.unwrap_or_else(|| panic!("no address in {greeting:?}")).to_owned();
        Self { child, address, client: reqwest::Client::new() }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    async fn get(&self, path: &str) -> reqwest::Response {
        self.client.get(self.url(path)).send().await.expect("an answer")
    }

    async fn post(&self, path: &str, body: &Value) -> reqwest::Response {
        self.client.post(self.url(path)).json(body).send().await.expect("an answer")
    }

    /// Waits until a metric has reached a value.
    async fn reaches(&self, name: &str, value: f64) {
        let until = Instant::now() + PATIENCE;
        while self.metric(name).await < value {
            assert!(Instant::now() < until, "{name} does not reach {value}");
        }
    }

    /// Waits until a path has a status.
    async fn turns(&self, path: &str, status: u16) {
        let until = Instant::now() + PATIENCE;
        while self.get(path).await.status() != status {
            assert!(Instant::now() < until, "{path} does not turn {status}");
        }
    }

    async fn metric(&self, series: &str) -> f64 {
        let text = self.get("/metrics").await.text().await.expect("a text");
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no series {series}")).parse().expect("a number")
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status().expect("kill runs");
        assert!(sent.success());
    }

    async fn ended(&mut self, within: Duration) -> ExitStatus {
        let until = Instant::now() + within;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("still running after {within:?}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_flag_wins_over_a_variable_over_the_file_over_the_default() {
    let file = file("max_inputs = 2\nmax_passes = 2\nchunk_tokens = 2\n[models]\nfilm = \"models/sst2\"\n");
    let path = file.path().display().to_string();
    let variables = [("EXPLAIND_MAX_INPUTS", "3"), ("EXPLAIND_MAX_PASSES", "3")];
    let output = run(&["serve", "--config", &path, "--check-config", "--max-inputs=4"], &variables);
    let listing = told(&output.stdout);
    for line in [
        "max_inputs = 4 (flag)",
        "max_passes = 3 (variable)",
        "chunk_tokens = 2 (file)",
        "models = film=models/sst2 (file)",
        "threads = 1 (default)",
    ] {
        assert!(listing.lines().any(|it| it == line), "{line} is not in\n{listing}");
    }
    assert!(output.status.success());
}

#[test]
fn the_defaults_of_the_engine_are_those_of_the_device() {
    let file = file("device = \"cuda:1\"\nchunk_tokens = 100\n[models]\nfilm = \"models/sst2\"\n");
    let path = file.path().display().to_string();
    let mut command = command(&["serve", "--config", &path, "--check-config"]);
    let listing = told(&command.env_remove("EXPLAIND_DEVICE").output().expect("the program runs").stdout);
    for line in ["device = cuda:1 (file)", "workers = 2 (default)", "chunk_tokens = 100 (file)"] {
        assert!(listing.lines().any(|it| it == line), "{line} is not in\n{listing}");
    }
    let listing = told(&run(&["serve", MODEL, "--check-config", "--device=cuda"], &[]).stdout);
    assert!(listing.lines().any(|it| it == "chunk_tokens = 4096 (default)"), "{listing}");
}

#[test]
fn a_reader_that_leaves_early_ends_it_quietly() {
    for arguments in [&["inspect", "models/sst2"][..], &["openapi"], &["serve", MODEL, "--check-config"]] {
        let mut child = command(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program runs");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("the program ends");
        assert_eq!(told(&output.stderr), "", "{arguments:?}");
        assert!(output.status.success(), "{arguments:?}");
    }
}

#[test]
fn unknown_settings_are_refused_by_name() {
    let unknown = file("max_input = 2\n");
    let unknown = unknown.path().display().to_string();
    let wrong = file("max_inputs = \"many\"\n");
    let wrong = wrong.path().display().to_string();
    let several = file("max_inputs = [1, 2]\n");
    let several = several.path().display().to_string();
    let broken = file("# keys\napi_keys = [\"hunter2\n");
    let broken = broken.path().display().to_string();
    type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a str);
    let cases: [Case<'_>; 7] = [
        (&["serve", MODEL, "--config", &several], &[], "`max_inputs` takes one value"),
        (&["serve", MODEL, "--config", &broken], &[], "line 2: "),
        (&["serve", MODEL, "--max-input=2"], &[], "--max-input"),
        (&["serve", MODEL], &[("EXPLAIND_MAX_INPUT", "2")], "EXPLAIND_MAX_INPUT"),
        (&["serve", MODEL, "--config", &unknown], &[], "`max_input`"),
        (&["serve", MODEL, "--config", &wrong], &[], "--max-inputs"),
        (&["serve", MODEL, "--config", "nowhere.toml"], &[], "nowhere.toml"),
    ];
    for (arguments, variables, name) in cases {
        let output = run(arguments, variables);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(told(&output.stderr).contains(name), "{}", told(&output.stderr));
        assert!(!told(&output.stderr).contains("hunter2"), "a key is told");
    }
}

#[test]
fn variables_by_which_kubernetes_describes_services_are_not_ours() {
    let variables = [("EXPLAIND_SERVICE_HOST", "10.0.0.1"), ("EXPLAIND_PORT", "tcp://10.0.0.1:8080")];
    assert!(run(&["serve", MODEL, "--check-config"], &variables).status.success());
    let variables = [("EXPLAIND_PORT_8080_TCP_ADDR", "10.0.0.1"), ("EXPLAIND_SERVICE_PORT_HTTP", "8080")];
    assert!(run(&["serve", MODEL, "--check-config"], &variables).status.success());
    for name in ["EXPLAIND_MAX_PORT_INPUTS", "EXPLAIND_PORT_HTTP_TCP", "EXPLAIND_OTHER_SERVICE_HOST"] {
        let output = run(&["serve", MODEL, "--check-config"], &[(name, "3")]);
        assert_eq!(output.status.code(), Some(2), "{name}");
        assert!(told(&output.stderr).contains(name));
    }
}

#[test]
fn only_a_variable_is_split_at_commas() {
    let file = file("[models]\nzeta = \"a,b\"\nalpha = \"c\"\n");
    let path = file.path().display().to_string();
    let listing = |arguments: &[&str], variables: &[(&str, &str)]| {
        let output = run(&[&["serve", "--check-config"], arguments].concat(), variables);
        assert!(output.status.success(), "{}", told(&output.stderr));
        told(&output.stdout)
    };
    assert!(listing(&["--config", &path], &[]).contains("models = zeta=a,b,alpha=c (file)"));
    listing(&["--model=zeta=a,alpha"], &[]);
    let two = listing(
        &[],
        &[("EXPLAIND_MODELS", "zeta=a,alpha=b"), ("EXPLAIND_CORS_ORIGINS", "http://a,http://b")],
    );
    assert!(two.contains("models = zeta=a,alpha=b (variable)"), "{two}");
}

#[tokio::test]
async fn a_key_may_hold_a_comma_and_models_keep_their_order() {
    let models = file("[models]\nzeta = \"models/sst2\"\nalpha = \"models/sst2\"\n");
    let mut service =
        Running::start_with(&[&format!("--config={}", models.path().display()), "--api-key=strong,1"]);
    let ask = async |service: &Running, key: &str| {
        let request = service.client.get(service.url("/models")).bearer_auth(key);
        request.send().await.expect("an answer")
    };
    assert_eq!(ask(&service, "1").await.status(), 401);
    let models: Value = ask(&service, "strong,1").await.json().await.expect("JSON");
    let names: Vec<&Value> =
        models["models"].as_array().expect("a list").iter().map(|it| &it["name"]).collect();
    assert_eq!(names, ["zeta", "alpha"]);
    service.signal("TERM");
    service.ended(Duration::from_secs(20)).await;
}

#[test]
fn what_cannot_be_read_is_told_without_opening_a_model() {
    for (flag, word) in [("--api-keys-file=/nowhere/keys", "/nowhere/keys"), ("--log=foo=bar=baz", "log: ")] {
        let output = run(&["serve", MODEL, "--check-config", flag], &[]);
        assert!(!output.status.success(), "{flag}");
        assert!(told(&output.stderr).contains(word), "{}", told(&output.stderr));
    }
}

#[test]
fn a_cause_is_told_once() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("config.json"), "{").expect("a file");
    for name in ["model.onnx", "tokenizer.json"] {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sst2").join(name);
        std::os::unix::fs::symlink(file, folder.path().join(name)).expect("a link");
    }
    let output =
        run(&["serve", &format!("--model=odd={}", folder.path().display()), "--addr=127.0.0.1:0"], &[]);
    let words = told(&output.stderr);
    assert_eq!(words.matches("EOF while parsing").count(), 1, "{words}");
}

#[test]
fn keys_are_masked_wherever_they_come_from() {
    let file = file("api_keys = [\"hunter2\"]\n");
    let path = file.path().display().to_string();
    for (arguments, variables) in [
        (vec!["--config", &path], vec![]),
        (vec!["--api-key=hunter2"], vec![]),
        (vec![], vec![("EXPLAIND_API_KEYS", "hunter2")]),
    ] {
        let output = run(&[&["serve", MODEL, "--check-config"], &arguments[..]].concat(), &variables);
        let listing = told(&output.stdout) + &told(&output.stderr);
        assert!(listing.contains("api_keys = ***") && !listing.contains("hunter2"), "{listing}");
    }
}

#[test]
fn the_file_of_the_image_leaves_room_for_a_file_in_its_place() {
    let listing = told(&run(&["serve", "--config=deploy/explaind.toml", "--check-config"], &[]).stdout);
    for line in
        ["addr = 0.0.0.0:8080 (file)", "models = sst2=/models/sst2 (file)", "log_format = json (file)"]
    {
        assert!(listing.contains(line), "{listing}");
    }
    let image = std::fs::read_to_string("Dockerfile").expect("a Dockerfile");
    let set: Vec<&str> = image.split_whitespace().filter(|it| it.starts_with("EXPLAIND_")).collect();
    assert_eq!(set, ["EXPLAIND_CONFIG=/etc/explaind/explaind.toml"], "a variable outranks every file");
}

#[test]
fn contradictions_are_told_before_anything_is_opened() {
    let output =
        run(&["serve", MODEL, "--default-timeout-ms=9", "--max-timeout-ms=8", "--drain-limit-ms=1"], &[]);
    assert_eq!(output.status.code(), Some(2));
    let words = told(&output.stderr);
    assert!(words.contains("default_timeout_ms") && words.contains("drain_limit_ms"), "{words}");
}

#[test]
fn a_model_that_does_not_open_stops_the_start_and_names_the_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = format!("--model=hollow={}", folder.path().display());
    let output = run(&["serve", &model, "--addr=127.0.0.1:0"], &[]);
    assert_eq!(output.status.code(), Some(1));
    let words = told(&output.stderr);
    assert!(words.contains("`hollow`") && words.contains("model.onnx: the file is missing"), "{words}");
}

#[test]
fn an_address_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let output = run(&["serve", MODEL, "--addr", &address], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(told(&output.stderr).contains(&address));
}

#[tokio::test]
async fn with_allow_partial_a_broken_model_is_listed_and_the_others_are_served() {
    let service = Running::start(&["--model=hollow=/nowhere", "--allow-partial"]);
    let models: Value = service.get("/models").await.json().await.expect("JSON");
    let statuses: Vec<&Value> =
        models["models"].as_array().expect("a list").iter().map(|it| &it["status"]).collect();
    assert_eq!(statuses, ["ready", "failed"]);
}

#[tokio::test]
async fn the_second_listener_serves_metrics_and_probes_and_no_work() {
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a port").port();
    let service = Running::start(&[&format!("--metrics-addr=127.0.0.1:{port}")]);
    let ask = async |path: &str| {
        let url = format!("http://127.0.0.1:{port}{path}");
        service.client.get(url).send().await.expect("an answer").status().as_u16()
    };
    assert_eq!([ask("/metrics").await, ask("/readyz").await, ask("/models").await], [200, 200, 404]);
}

#[tokio::test]
async fn sigterm_drains_in_order_and_exits_with_zero() {
    let mut service =
        Running::start(&["--drain-delay-ms=1500", "--drain-limit-ms=3000", "--queue-tokens=100000000"]);
    let (url, client) = (service.url("/explain/leave-one-out"), service.client.clone());
    let long =
        tokio::spawn(async move { client.post(url).json(&endless()).send().await.expect("an answer") });
    service.reaches("explaind_rows_total", 1.0).await;
    service.signal("TERM");
    service.turns("/readyz", 503).await;
    let short = json!({ "inputs": "fine" });
    assert_eq!(service.post("/predict", &short).await.status(), 200, "work goes on while others look away");
    let refused = loop {
        let answer = service.post("/predict", &short).await;
        if answer.status() != 200 {
            break answer;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(service.get("/livez").await.status(), 200, "leaving is not dying");
    let cancelled = long.await.expect("no panic");
    assert_eq!(cancelled.status(), 503, "what still runs at the limit is cancelled and told so");
    assert!(cancelled.headers().contains_key("retry-after"));
    assert_eq!(service.ended(Duration::from_secs(5)).await.code(), Some(0));
}

#[tokio::test]
async fn sigint_lets_a_running_answer_finish_and_exits_with_zero() {
    let mut service = Running::start(&["--drain-delay-ms=0", "--drain-limit-ms=60000"]);
    let (url, client) = (service.url("/explain/leave-one-out"), service.client.clone());
    let body = json!({ "inputs": "good ".repeat(100), "timeout_ms": 60_000 });
    let running = tokio::spawn(async move { client.post(url).json(&body).send().await.expect("an answer") });
    service.reaches("explaind_in_flight", 1.0).await;
    service.signal("INT");
    assert_eq!(running.await.expect("no panic").status(), 200);
    assert_eq!(service.ended(Duration::from_secs(5)).await.code(), Some(0));
}

#[tokio::test]
async fn a_client_that_goes_away_stops_its_work() {
    let service = Running::start(&[]);
    let body = endless().to_string();
    let mut stream = TcpStream::connect(&service.address).expect("a connection");
    let head = "POST /explain/leave-one-out HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\ncontent-length:";
    write!(stream, "{head} {}\r\n\r\n{body}", body.len()).expect("a request");
    service.reaches("explaind_rows_total", 20.0).await;
    drop(stream);
    let cancelled = r#"explaind_explanations_total{method="leave-one-out",outcome="cancelled"}"#;
    service.reaches(cancelled, 1.0).await;
    let at_once = service.metric("explaind_rows_total").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    // One row of 402 tokens fills a chunk, and each worker finishes the chunk that it has begun.
    let workers = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    assert!(service.metric("explaind_rows_total").await <= at_once + workers);
    assert_eq!(service.metric("explaind_queue_tokens").await, 0.0);
    assert_eq!(service.metric("explaind_in_flight").await, 0.0);
}

#[tokio::test]
async fn no_word_of_a_text_reaches_the_log() {
    let mut child = command(&["serve", MODEL, "--addr=127.0.0.1:0", "--log=trace", "--log-format=json"])
        .args(["--drain-delay-ms=0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program runs");
    let mut stderr = child.stderr.take().expect("a piped log");
    let log = std::thread::spawn(move || {
        let mut text = String::new();
        stderr.read_to_string(&mut text).map(|_| text)
    });
    let mut greeting = String::new();
    BufReader::new(child.stdout.as_mut().expect("a piped output"))
        .read_line(&mut greeting)
        .expect("a greeting");
    let address = greeting.split("http://").nth(1).and_then(|it| it.split(',').next()).expect("an address");
    let service = Running { address: address.to_owned(), child, client: reqwest::Client::new() };
    let text = "An unmistakable zanzibar of a film";
    for body in [json!({ "inputs": text }), json!({ "inputs": [text], "target": "zanzibar", "zanzibar": 1 })]
    {
        service.post("/explain/leave-one-out", &body).await;
        service.post("/predict", &body).await;
    }
    service.signal("TERM");
    let log = log.join().expect("no panic").expect("a log in UTF-8");
    assert!(log.contains("text_hash") && log.contains("\"answered\""), "{log}");
    assert!(!log.contains("zanzibar"), "{log}");
}
