//! Dependencies that are not there at the start, go away and come back.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use serde_json::json;
use sqlx::{PgPool, postgres::PgConnectOptions};
use tokio::net::{TcpListener, TcpStream};

use crate::program::{Environment, eventually};

/// A way to PostgreSQL that can be cut: connections are then reset, and new ones refused in effect.
struct Line {
    address: SocketAddr,
    connected: Arc<AtomicBool>,
}

impl Line {
    async fn to(options: &PgConnectOptions) -> Self {
        let target = (options.get_host().to_owned(), options.get_port());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let connected = Arc::new(AtomicBool::new(false));
        let is_connected = Arc::clone(&connected);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (target, is_connected) = (target.clone(), Arc::clone(&is_connected));
                tokio::spawn(async move {
                    if !is_connected.load(Ordering::Relaxed) {
                        return;
                    }
                    let mut far = TcpStream::connect(target).await.expect("PostgreSQL accepts");
                    let cut = async {
                        while is_connected.load(Ordering::Relaxed) {
                            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                        }
                    };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        () = cut => {}
                    }
                });
            }
        });
        Self { address, connected }
    }
}

#[sqlx::test(migrations = false)]
async fn an_api_lives_through_the_absence_of_its_database(pool: PgPool) {
    let line = Line::to(&pool.connect_options()).await;
    let mut environment = Environment::new(&pool);
    let direct = environment.variables["DATABASE_URL"].clone();
    let mut url = url::Url::parse(&direct).expect("a URL");
    url.set_ip_host(line.address.ip()).expect("a host");
    url.set_port(Some(line.address.port())).expect("a port");
    environment = environment.with("DATABASE_URL", url.as_str());
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

    line.connected.store(true, Ordering::Relaxed);
    eventually("the API is ready once the database is there", || environment.is_ready()).await;
    let workflow_id = environment.chain("outage", &["http://127.0.0.1:9/".to_owned()]).await;
    environment.execute(&workflow_id).await.expect("accepted");

    line.connected.store(false, Ordering::Relaxed);
    eventually("the API notices", || async { environment.is_ready().await.is_none().then_some(()) }).await;
    is_cut_off().await;
    assert!(environment.execute(&workflow_id).await.is_none());

    line.connected.store(true, Ordering::Relaxed);
    eventually("the API is ready again", || environment.is_ready()).await;
    environment.execute(&workflow_id).await.expect("accepted again");
}
