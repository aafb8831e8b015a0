//! Dependencies that are not there at the start, go away and come back.

use std::{
    cell::Cell,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection, PgPool, postgres::PgConnectOptions};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::program::{Environment, eventually};

/// A way to PostgreSQL that can be cut, so that connections are reset and new ones refused in effect, or lost, so that
/// what was connected hears nothing any more, not even of its end.
pub struct Line {
    address: SocketAddr,
    connected: watch::Sender<bool>,
    /// Number of connections so far.
    count: Arc<AtomicUsize>,
    /// Connections up to this number are lost.
    lost: watch::Sender<usize>,
}

impl Line {
    /// Connects or cuts it.
    pub fn connect(&self, is_connected: bool) {
        self.connected.send_replace(is_connected);
    }

    /// Drops the existing connections; new ones are carried.
    fn lose(&self) {
        self.lost.send_replace(self.count.load(Ordering::SeqCst));
    }

    /// Drops new connections as well.
    fn lose_all(&self) {
        self.lost.send_replace(usize::MAX);
    }

    async fn to(options: &PgConnectOptions) -> Self {
        let target = (options.get_host().to_owned(), options.get_port());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let line =
            Self { address, connected: watch::Sender::new(false), count: Arc::default(), lost: watch::Sender::new(0) };
        let (count, is_connected, are_lost) =
            (Arc::clone(&line.count), line.connected.subscribe(), line.lost.subscribe());
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (target, mut is_connected, mut are_lost) = (target.clone(), is_connected.clone(), are_lost.clone());
                let number = count.fetch_add(1, Ordering::SeqCst) + 1;
                tokio::spawn(async move {
                    if !*is_connected.borrow() {
                        return;
                    }
                    let mut far = TcpStream::connect(target).await.expect("PostgreSQL accepts");
                    // Both end when the line is dropped.
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
                        _ = is_connected.wait_for(|is_connected| !is_connected) => return,
                        lost = are_lost.wait_for(|lost| number <= *lost) => if lost.is_err() { return },
                    }
                    // Both ends stay open, and nobody carries anything between them.
                    std::future::pending::<()>().await;
                });
            }
        });
        line
    }
}

/// An environment whose database is at the end of such a line, which is not connected yet.
pub async fn through_a_line(pool: &PgPool) -> (Line, Environment) {
    let line = Line::to(&pool.connect_options()).await;
    let environment = Environment::new(pool);
    let mut url = url::Url::parse(&environment.variables["DATABASE_URL"]).expect("a URL");
    url.set_ip_host(line.address.ip()).expect("a host");
    url.set_port(Some(line.address.port())).expect("a port");
    (line, environment.with("DATABASE_URL", url.as_str()))
}

#[sqlx::test(migrations = false)]
async fn an_api_lives_through_the_absence_of_its_database(pool: PgPool) {
    let (line, environment) = through_a_line(&pool).await;
    let _api = environment.start(&["serve"]);
    eventually("the API lives", || async { reqwest::get(format!("{}/health", environment.url)).await.ok() }).await;

    let is_cut_off = async || {
        let ready = reqwest::get(format!("{}/health/ready", environment.url)).await.expect("an answer");
        assert_eq!(ready.status(), 503);
        let body: serde_json::Value = ready.json().await.expect("JSON");
        assert_eq!((&body["status"], &body["checks"]["database"]), (&json!("not_ready"), &json!("disconnected")));
        let agents = reqwest::get(format!("{}/api/v1/agents", environment.url)).await.expect("an answer");
        assert_eq!(agents.status(), 503);
        assert!(agents.headers().contains_key("retry-after"));
        assert_eq!(environment.get("/health").await["status"], "healthy");
    };
    is_cut_off().await;

    line.connect(true);
    eventually("the API is ready once the database is there", || environment.is_ready()).await;
    let workflow_id = environment.chain("outage", &["http://127.0.0.1:9/".to_owned()]).await;
    environment.execute(&workflow_id).await.expect("accepted");

    line.connect(false);
    eventually("the API notices", || async { environment.is_ready().await.is_none().then_some(()) }).await;
    is_cut_off().await;
    assert!(environment.execute(&workflow_id).await.is_none());

    line.connect(true);
    eventually("the API is ready again", || environment.is_ready()).await;
    environment.execute(&workflow_id).await.expect("accepted again");
}

/// The host of the database has gone and another one answers at its address: nobody tells the connections.
#[sqlx::test(migrations = false)]
async fn an_api_goes_on_when_its_connections_are_lost_without_a_word(pool: PgPool) {
    let (line, environment) = through_a_line(&pool).await;
    line.connect(true);
    let mut api = environment.serve().await;
    let workflow_id = environment.chain("silence", &["http://127.0.0.1:9/".to_owned()]).await;
    environment.execute(&workflow_id).await.expect("accepted");
    line.lose();
    eventually("runs are accepted again", || environment.execute(&workflow_id)).await;
    eventually("the API is ready", || environment.is_ready()).await;

    // Now with requests under way, and with the way to the database swallowing whatever is sent.
    line.lose_all();
    let agents = format!("{}/api/v1/agents", environment.url);
    let requests = futures_util::future::join_all((0..60).map(|_| reqwest::get(&agents)));
    for answer in requests.await {
        let status = answer.expect("an answer").status();
        assert!(status == 200 || status == 503, "{status}");
    }
    eventually("it is told", || async { environment.is_ready().await.is_none().then_some(()) }).await;
    line.lose();
    eventually("the API is ready again", || environment.is_ready()).await;
    eventually("runs are accepted again", || environment.execute(&workflow_id)).await;
    eventually("the connections are back", || async {
        let metrics = reqwest::get(format!("{}/metrics", environment.url)).await.ok()?.text().await.ok()?;
        let in_use = metrics.lines().find_map(|line| line.strip_prefix("db_pool_in_use "))?;
        // The run writer keeps one or two.
        in_use.parse::<f64>().is_ok_and(|count| count <= 3.0).then_some(())
    })
    .await;
    api.terminate().await;
    assert_eq!(api.exit_code().await, 0, "{}", api.log());
}

#[sqlx::test(migrations = false)]
async fn api_and_executor_say_from_the_start_that_no_broker_answers(pool: PgPool) {
    let environment = Environment::new(&pool).with("KAFKA_BROKERS", "127.0.0.1:1");
    // The API goes on, since the executor waits for the schema that it makes.
    let programs = ["serve", "executor"].map(|command| environment.start(&[command]));
    for program in &programs {
        eventually("it says so", || async {
            let log = program.log();
            let is_told =
                ["no broker of 127.0.0.1:1 answers", "Connection refused"].iter().all(|text| log.contains(text));
            is_told.then_some(())
        })
        .await;
    }
}

/// Another session holds the row that a request wants to change, so the request holds its connection for 2 s.
#[sqlx::test(migrations = false)]
async fn who_holds_a_connection_for_too_long_is_logged_once(pool: PgPool) {
    let environment = Environment::new(&pool).with("DATABASE_HELD_WARNING_SECS", "1");
    let api = environment.serve().await;
    let agent = json!({"name": "held", "url": "http://127.0.0.1:9/"});
    let answer = environment.post("/api/v1/agents", &agent).await.expect("an answer");
    let agent: Value = answer.json().await.expect("JSON");
    let url = format!("{}/api/v1/agents/{}", environment.url, agent["id"].as_str().expect("an id"));
    let mut other = PgConnection::connect_with(&pool.connect_options()).await.expect("a connection");
    let lock = "BEGIN; SELECT FROM agents WHERE name = 'held' FOR UPDATE";
    sqlx::raw_sql(lock).execute(&mut other).await.expect("the row");
    let client = reqwest::Client::new();
    let held = || {
        let line = |line: &Value| line["operation"].as_str().is_some_and(|by| by.starts_with("actions.save_agent:"));
        api.log_lines().into_iter().filter(line).count()
    };
    let asked = Cell::new(0);
    eventually("it is logged", async || {
        let answer = client.put(&url).json(&json!({"description": "new"})).send().await.expect("an answer");
        assert_eq!(answer.status(), 503);
        asked.set(asked.get() + 1);
        (held() > 0).then_some(())
    })
    .await;
    assert!(held() <= asked.get(), "{}", api.log());
    sqlx::query("ROLLBACK").execute(&mut other).await.expect("the row is free");
    let answer = client.put(&url).json(&json!({"description": "new"})).send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    let metrics = reqwest::get(format!("{}/metrics", environment.url)).await.expect("an answer").text().await;
    let counted = metrics
        .expect("text")
        .lines()
        .find_map(|line| line.strip_prefix("db_pool_held_too_long_total ")?.parse::<usize>().ok());
    assert!(counted.is_some_and(|count| count >= held() && count <= asked.get()), "{counted:?}");
    // Neither the run writer nor a loop is among them.
    assert_eq!(api.log().matches("a database connection is held").count(), held(), "{}", api.log());
}
