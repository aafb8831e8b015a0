//! The pool of database connections, against a server that goes away, comes back, and says nothing.

use std::{net::SocketAddr, time::Duration};

use futures_util::{future::join_all, poll};
use sqlx::{PgPool, postgres::PgConnectOptions};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{oneshot, watch},
};
use workflow_api::{
    clock::Clock,
    config::{ConnectOptions, Database},
    db::{self, migrations::MIGRATOR, processes::Registration},
    lifecycle::Lifecycle,
};

use crate::service::{config, eventually};

/// What a [`Line`] does with what is sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Line {
    Carry,
    /// Connections are closed, new ones at once.
    Cut,
    /// Connections stay open, new ones are taken, and nothing is carried.
    Lose,
}

/// A way to the server.
pub async fn line(options: &PgConnectOptions) -> (watch::Sender<Line>, SocketAddr) {
    let target = (options.get_host().to_owned(), options.get_port());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let (state, states) = watch::channel(Line::Carry);
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let (target, mut states) = (target.clone(), states.clone());
            tokio::spawn(async move {
                let changed = async |states: &mut watch::Receiver<Line>| {
                    *states.wait_for(|state| *state != Line::Carry).await.expect("the test goes on")
                };
                let carried = async {
                    let mut far = TcpStream::connect(target).await.expect("PostgreSQL accepts");
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                };
                tokio::select! {
                    biased;
                    state = changed(&mut states) => if state == Line::Lose {
                        std::future::pending::<()>().await;
                    },
                    () = carried => {}
                }
            });
        }
    });
    (state, address)
}

fn small(options: PgConnectOptions, size: u32, overflow: u32, pool: &PgPool) -> db::Pool {
    let mut settings = config(pool, &[]).database;
    settings.connect = ConnectOptions::from(options.application_name("own"));
    (settings.pool_size, settings.max_overflow) = (size, overflow);
    db::pool(&settings)
}

fn own(pool: &PgPool, size: u32, overflow: u32) -> db::Pool {
    small((*pool.connect_options()).clone(), size, overflow, pool)
}

async fn number(pool: &db::Pool) -> Result<i32, sqlx::Error> {
    sqlx::query_scalar("SELECT 1").fetch_one(pool).await
}

async fn sessions(pool: &PgPool) -> i64 {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'own' AND datname = current_database()";
    sqlx::query_scalar(sql).fetch_one(pool).await.expect("a count")
}

#[sqlx::test(migrations = false)]
async fn it_never_has_more_connections_than_it_may_and_closes_those_above_its_size(pool: PgPool) {
    let own = own(&pool, 2, 1);
    let sleeps = (0..30).map(|_| async { sqlx::query("SELECT pg_sleep(0.02)").execute(&own).await.expect("a turn") });
    let counts = async {
        for _ in 0..20 {
            assert!(sessions(&pool).await <= 3);
        }
    };
    tokio::join!(join_all(sleeps), counts);
    assert_eq!(own.size(), (3, 3));
    eventually("what was opened for the load is closed", || async { (sessions(&pool).await == 2).then_some(()) }).await;
    assert_eq!(own.size(), (2, 2));
}

#[sqlx::test(migrations = false)]
async fn the_newest_waiter_is_served_first_and_one_that_leaves_loses_nobody_a_connection(pool: PgPool) {
    let own = own(&pool, 1, 0);
    let held = own.acquire().await.expect("a connection");
    let (mut old, mut new) = (Box::pin(own.acquire()), Box::pin(own.acquire()));
    let mut gone = Box::pin(own.acquire());
    assert!(poll!(&mut old).is_pending() && poll!(&mut new).is_pending() && poll!(&mut gone).is_pending());
    drop(gone);
    drop(held);
    let second = new.await.expect("a connection");
    assert!(poll!(&mut old).is_pending());
    drop(second);
    // The waiter leaves with the connection on its way.
    drop(old);
    number(&own).await.expect("an answer");
    assert_eq!(own.size(), (1, 1));
}

#[sqlx::test(migrations = false)]
async fn a_connection_is_opened_for_whoever_comes(pool: PgPool) {
    let own = own(&pool, 1, 0);
    let mut left = Box::pin(own.acquire());
    assert!(poll!(&mut left).is_pending());
    drop(left);
    eventually("it is there all the same", || async { (own.size() == (1, 1)).then_some(()) }).await;
}

#[sqlx::test(migrations = false)]
async fn what_is_given_up_in_the_middle_leaves_no_transaction_to_others(pool: PgPool) {
    let own = own(&pool, 1, 0);
    sqlx::query("CREATE TABLE written (n int)").execute(&own).await.expect("a table");
    for n in 0..60 {
        let mut begun = Box::pin(own.begin());
        // At another place each time.
        for _ in 0..n % 6 {
            if poll!(&mut begun).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(begun);
        sqlx::query("INSERT INTO written VALUES ($1)").bind(n).execute(&own).await.expect("a row");
    }
    let written: i64 = sqlx::query_scalar("SELECT count(*) FROM written").fetch_one(&pool).await.expect("a count");
    assert_eq!(written, 60);
}

#[sqlx::test(migrations = false)]
async fn a_transaction_that_is_dropped_is_rolled_back_and_its_connection_kept(pool: PgPool) {
    let own = own(&pool, 1, 0);
    sqlx::query("CREATE TABLE written (n int)").execute(&own).await.expect("a table");
    let session =
        async || -> i32 { sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&own).await.expect("a number") };
    let before = session().await;
    let mut transaction = own.begin().await.expect("a transaction");
    sqlx::query("INSERT INTO written VALUES (1)").execute(&mut *transaction).await.expect("a row");
    drop(transaction);
    let mut failed = own.begin().await.expect("a transaction");
    sqlx::query("SELECT 1 / 0").execute(&mut *failed).await.expect_err("a fault");
    drop(failed);
    let mut committed = own.begin().await.expect("a transaction");
    sqlx::query("INSERT INTO written VALUES (2)").execute(&mut *committed).await.expect("a row");
    committed.commit().await.expect("the commit");
    assert_eq!(session().await, before);
    let written: Vec<i32> = sqlx::query_scalar("SELECT n FROM written").fetch_all(&pool).await.expect("rows");
    assert_eq!(written, [2]);
}

#[sqlx::test(migrations = false)]
async fn a_connection_with_a_session_of_its_own_goes_to_nobody_else(pool: PgPool) {
    let own = own(&pool, 1, 0);
    let mut changed = own.acquire_own().await.expect("a connection");
    sqlx::query("SET statement_timeout = 0").execute(&mut *changed).await.expect("a setting");
    drop(changed);
    let setting: String = sqlx::query_scalar("SHOW statement_timeout").fetch_one(&own).await.expect("a setting");
    assert_eq!(setting, "5s");
}

#[sqlx::test(migrations = false)]
async fn while_the_server_is_away_callers_are_refused_in_its_words_and_then_it_is_back(pool: PgPool) {
    let (state, address) = line(&pool.connect_options()).await;
    let options = (*pool.connect_options()).clone().host("127.0.0.1").port(address.port());
    let own = small(options, 2, 2, &pool);
    assert_eq!(number(&own).await.expect("an answer"), 1);
    state.send_replace(Line::Cut);
    eventually("it is noticed", || async { number(&own).await.err().map(drop) }).await;
    eventually("all are refused before they wait", || async {
        let answers = join_all((0..50).map(|_| async {
            let mut asked = Box::pin(own.acquire());
            poll!(&mut asked).is_ready()
        }));
        answers.await.into_iter().all(|is_refused| is_refused).then_some(())
    })
    .await;
    state.send_replace(Line::Carry);
    eventually("it is back", || async { number(&own).await.ok() }).await;
    for answer in join_all((0..50).map(|_| number(&own))).await {
        answer.expect("an answer");
    }

    let nobody = small((*pool.connect_options()).clone().host("127.0.0.1").port(1), 1, 0, &pool);
    let error = number(&nobody).await.expect_err("nobody listens there");
    assert!(error.to_string().contains("Connection refused"), "{error}");
}

#[sqlx::test(migrations = false)]
async fn connections_that_are_lost_without_a_word_come_back_to_the_pool(pool: PgPool) {
    let (state, address) = line(&pool.connect_options()).await;
    let options = (*pool.connect_options()).clone().host("127.0.0.1").port(address.port());
    let own = small(options, 3, 0, &pool);
    for answer in join_all((0..3).map(|_| number(&own))).await {
        answer.expect("an answer");
    }
    let began = Clock::default().instant().into();
    state.send_replace(Line::Lose);
    // All places are taken by statements without an answer, which end when that is noticed.
    let mut asked = Box::pin(join_all((0..3).map(|_| number(&own))));
    assert!(poll!(&mut asked).is_pending());
    assert!(own.note_silence(began));
    for answer in asked.await {
        let error = answer.expect_err("nobody answers").to_string();
        assert!(error.contains("the database does not answer"), "{error}");
    }
    assert!(tokio::time::timeout(Duration::ZERO, own.acquire()).await.expect("at once").is_err());
    state.send_replace(Line::Carry);
    eventually("it is back", || async { number(&own).await.ok() }).await;
    for answer in join_all((0..3).map(|_| number(&own))).await {
        answer.expect("an answer");
    }
    // One that answers is not silent, whatever a check has met.
    assert!(!own.note_silence(began));
}

/// The program ends while a statement has no answer.
#[test]
fn a_runtime_that_ends_takes_connections_along() {
    let url = std::env::var("DATABASE_URL").expect("DATABASE_URL names the test server");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let settings = [("DATABASE_URL", url.as_str())].map(|(name, value)| (name.to_owned(), value.to_owned()));
        let settings: Database = workflow_api::config::load(settings.into_iter()).expect("valid settings");
        let own = db::pool(&settings);
        let mut connection = own.acquire().await.expect("a connection");
        let (begun, asked) = oneshot::channel();
        tokio::spawn(async move {
            let mut sleep = Box::pin(sqlx::query("SELECT pg_sleep(4)").execute(&mut *connection));
            assert!(poll!(&mut sleep).is_pending());
            begun.send(()).expect("somebody waits");
            sleep.await.expect("the runtime ends before");
        });
        asked.await.expect("the statement is under way");
    });
    drop(runtime);
}

#[sqlx::test(migrations = false)]
async fn a_pool_is_closed_with_all_its_connections(pool: PgPool) {
    let own = own(&pool, 2, 0);
    let lent = own.acquire().await.expect("a connection");
    let (closed, ()) = tokio::join!(own.close(), async { drop(lent) });
    let () = closed;
    // The server ends a session a moment after its connection.
    eventually("its sessions have ended", || async { (sessions(&pool).await == 0).then_some(()) }).await;
    assert!(matches!(number(&own).await, Err(sqlx::Error::PoolClosed)));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_process_beats_while_its_connections_are_all_in_use(pool: PgPool) {
    let own = own(&pool, 1, 0);
    let held = own.acquire().await.expect("a connection");
    let lifecycle = Lifecycle::new();
    let registration = Registration::start(own.clone(), "serve", false, &lifecycle);
    eventually("it is registered", || async { registration.current() }).await;
    let sql = "SELECT count(*) FROM processes WHERE heartbeat_at > started_at";
    eventually("it beats", || async {
        (sqlx::query_scalar::<_, i64>(sql).fetch_one(&pool).await.expect("a count") == 1).then_some(())
    })
    .await;
    drop(held);
    lifecycle.hard_stop().cancel();
}
