//! The faults. Each lasts one or two seconds and is over when its function returns.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use litespend::identity::hash_key;
use nix::sys::socket::{setsockopt, sockopt::Linger};
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::cluster::Cluster;
use crate::load::{self, KEYS, Ledger, OWNED, TEAMS, USERS};
use crate::servers::{self, MASTER_KEY, Server};

/// The kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    BackendsKilled,
    PostgresStoppedAtOnce,
    ServerKilled,
    ServerRestarted,
    ClientsReset,
    DiskFull,
    ConnectionLimit,
    ClockStepped,
    Deadlocks,
    SecondServer,
    TableLocked,
}

/// Every fault with its name and its relative frequency.
pub(crate) const FAULTS: [(Fault, &str, u32); 11] = [
    (Fault::BackendsKilled, "backends killed", 14),
    (Fault::PostgresStoppedAtOnce, "PostgreSQL stopped at once and started", 10),
    (Fault::ServerKilled, "server killed (-9) and started", 12),
    (Fault::ServerRestarted, "server stopped in order and started", 6),
    (Fault::ClientsReset, "clients reset mid-request and mid-answer", 14),
    (Fault::DiskFull, "disk full", 6),
    (Fault::ConnectionLimit, "connection limit reached", 8),
    (Fault::ClockStepped, "clock of a server stepped", 10),
    (Fault::Deadlocks, "deadlocks forced", 10),
    (Fault::SecondServer, "a further server joins and leaves", 6),
    (Fault::TableLocked, "the log locked by somebody else", 4),
];

/// Everything that a fault may touch.
pub(crate) struct World {
    pub cluster: Cluster,
    pub servers: Vec<Server>,
    pub ledger: Arc<Ledger>,
    pub directory: PathBuf,
    pub started: usize,
}

impl World {
    /// Starts a server; tries again while the database is unavailable.
    pub(crate) async fn start_server(&mut self) {
        for attempt in 0.. {
            self.started += 1;
            match Server::start(&self.directory, self.started, &self.cluster.url()) {
                Ok(server) => {
                    self.servers.push(server);
                    return self.tell_addresses();
                }
                Err(said) if attempt > 20 => return self.ledger.violation(format!("a server does not start: {said}")),
                Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
            }
        }
    }

    pub(crate) fn tell_addresses(&self) {
        *self.ledger.addresses.lock().unwrap() = self.servers.iter().map(|server| server.address.clone()).collect();
    }

    /// Removes a server from those that receive load.
    fn take_server(&mut self, random: &mut StdRng) -> Server {
        let server = self.servers.remove(random.random_range(0..self.servers.len()));
        for line in server.panics() {
            self.ledger.violation(line);
        }
        self.tell_addresses();
        server
    }
}

/// Inflicts a fault and heals it. Returns `false` if the system does not allow this fault.
pub(crate) async fn inflict(world: &mut World, fault: Fault, random: &mut StdRng) -> bool {
    match fault {
        Fault::BackendsKilled => kill_backends(world, random).await,
        Fault::PostgresStoppedAtOnce => {
            world.cluster.stop_at_once();
            pause(random, 0..800).await;
            world.cluster.start().await;
        }
        Fault::ServerKilled => {
            // Clients may still send requests to the server while it dies.
            let server = world.servers.remove(random.random_range(0..world.servers.len()));
            server.kill();
            pause(random, 0..300).await;
            world.start_server().await;
        }
        Fault::ServerRestarted => {
            let server = world.take_server(random);
            if !server.stop() {
                world.ledger.violation("a server did not end within 30 s of SIGTERM");
            }
            world.start_server().await;
        }
        Fault::ClientsReset => reset_clients(world, random).await,
        Fault::DiskFull if !world.cluster.has_own_disk() => return false,
        Fault::DiskFull => {
            let ballast = world.cluster.fill_disk();
            pause(random, 500..2000).await;
            drop(ballast);
            // PostgreSQL may have ended by itself, because it could not write.
            world.cluster.start().await;
        }
        Fault::ConnectionLimit => {
            let mut held = Vec::new();
            while let Ok(connection) = PgConnection::connect(&world.cluster.url()).await {
                held.push(connection);
            }
            pause(random, 500..2000).await;
            for connection in held {
                let _ = connection.close().await;
            }
        }
        Fault::ClockStepped if servers::clock_library().is_none() => return false,
        Fault::ClockStepped => {
            let offsets = ["+3600", "-3600", "+86400", "-86400", "+2678400", "+300", "-5"];
            let server = world.servers.choose(random).unwrap();
            server.step_clock(offsets.choose(random).unwrap());
            pause(random, 1200..2500).await;
            server.step_clock("+0");
        }
        Fault::Deadlocks => force_deadlocks(world, random).await,
        Fault::SecondServer => {
            world.start_server().await;
            pause(random, 300..1500).await;
            let server = world.take_server(random);
            if random.random_bool(0.5) {
                server.kill();
            } else if !server.stop() {
                world.ledger.violation("a server did not end within 30 s of SIGTERM");
            }
        }
        Fault::TableLocked => {
            let mut admin = world.cluster.admin("litespend").await.unwrap();
            let mut transaction = admin.begin().await.unwrap();
            let lock = r#"LOCK TABLE "LiteLLM_SpendLogs" IN ACCESS EXCLUSIVE MODE"#;
            transaction.execute(lock).await.unwrap();
            pause(random, 500..2500).await;
            transaction.rollback().await.unwrap();
        }
    }
    true
}

async fn pause(random: &mut StdRng, milliseconds: std::ops::Range<u64>) {
    tokio::time::sleep(Duration::from_millis(random.random_range(milliseconds))).await;
}

async fn kill_backends(world: &World, random: &mut StdRng) {
    let mut admin = world.cluster.admin("litespend").await.unwrap();
    for _ in 0..random.random_range(1..6) {
        sqlx::query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE usename = 'litespend' AND random() < $1",
        )
        .bind(random.random_range(0.2..1.0))
        .execute(&mut admin)
        .await
        .unwrap();
        pause(random, 0..250).await;
    }
}

/// Sessions that lock the counters' rows in random orders, so that they deadlock with each other and with the bookings.
async fn force_deadlocks(world: &World, random: &mut StdRng) {
    let tokens: Vec<String> = OWNED.iter().map(|(key, _, _)| hash_key(key)).collect();
    let mut statements = Vec::new();
    statements.extend(
        tokens.iter().map(|id| format!(r#"UPDATE "LiteLLM_VerificationToken" SET spend = spend WHERE token = '{id}'"#)),
    );
    statements
        .extend(TEAMS.map(|id| format!(r#"UPDATE "LiteLLM_TeamTable" SET spend = spend WHERE team_id = '{id}'"#)));
    statements
        .extend(USERS.map(|id| format!(r#"UPDATE "LiteLLM_UserTable" SET spend = spend WHERE user_id = '{id}'"#)));
    let mut tasks = Vec::new();
    for _ in 0..4 {
        let mut connection = world.cluster.admin("litespend").await.unwrap();
        let mut orders: Vec<Vec<String>> = Vec::new();
        for _ in 0..6 {
            let mut order = statements.clone();
            order.shuffle(random);
            order.truncate(4);
            orders.push(order);
        }
        tasks.push(tokio::spawn(async move {
            for order in orders {
                let mut transaction = connection.begin().await.unwrap();
                for statement in order {
                    // This session is sometimes the one that PostgreSQL aborts to end a deadlock.
                    if transaction.execute(AssertSqlSafe(statement)).await.is_err() {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(40)).await;
                }
                let _ = transaction.rollback().await;
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

/// Clients that disconnect in the middle of a body, after it, or in the middle of an answer.
async fn reset_clients(world: &World, random: &mut StdRng) {
    for _ in 0..30 {
        let Some(address) = world.servers.choose(random).map(|server| server.address.clone()) else { return };
        let address = address.trim_start_matches("http://").to_owned();
        let Ok(mut stream) = TcpStream::connect(&address) else { continue };
        let _ = stream.set_read_timeout(Some(Duration::from_millis(300)));
        if random.random_bool(0.5) {
            let path = [
                "/spend/logs?start_date=2026-01-01&end_date=2026-02-28&summarize=false",
                "/spend/tags",
                "/global/spend/tags?start_date=2026-01-01&end_date=2026-02-28",
                "/global/spend/report?start_date=2026-01-01&end_date=2026-02-28&group_by=customer",
            ]
            .choose(random)
            .unwrap();
            let head = format!("GET {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {MASTER_KEY}\r\n\r\n");
            let _ = stream.write_all(head.as_bytes());
            if random.random_bool(0.7) {
                let _ = stream.read(&mut [0; 100]);
            }
        } else {
            let key = [MASTER_KEY, KEYS[0], KEYS[1]].choose(random).copied().unwrap();
            let body = load::body(&world.ledger, key, random);
            let head = format!(
                "POST /spend/usage HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\n\
                 Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            let cut = if random.random_bool(0.5) { body.len() } else { random.random_range(0..body.len()) };
            let _ = stream.write_all(head.as_bytes());
            let _ = stream.write_all(&body.as_bytes()[..cut]);
            if random.random_bool(0.5) {
                std::thread::sleep(Duration::from_millis(random.random_range(0..30)));
            }
            // The client cannot know whether its request was booked, so it is sent again.
            world.ledger.unanswered.lock().unwrap().push((key.to_owned(), body));
        }
        // The connection ends at once, with a reset.
        let _ = setsockopt(&stream.as_fd(), Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 });
    }
}
