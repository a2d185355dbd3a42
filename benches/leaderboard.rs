//! Compares a leaderboard with a sorted set of Redis: a change, the first 100 and a rank, among a
//! thousand and a million keys.
//!
//! Redis is measured if `redis-server` is on the PATH. The bench starts its own server on a unix
//! socket, without persistence. It sends one command at a time, and pipelined ones; a pipelined
//! time is a command's share. Both must give the same first 100 and the same ranks before they are
//! timed.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::disallowed_methods, missing_docs)]

#[allow(clippy::unwrap_used, clippy::disallowed_methods)]
mod common;

use std::env;
use std::hint::black_box;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::Random;
use criterion::{
    BenchmarkGroup, Criterion, criterion_group, criterion_main, measurement::WallTime,
};
use keepcount::{Counter, Leaderboard, MemoryLeaderboard};
use tempfile::TempDir;

/// Commands sent to Redis before their replies are read.
const PIPELINE: u64 = 256;

const SCORES: Counter<u64> = Counter::new("bench.scores");
const LEADERBOARD: Leaderboard<u64> =
    Leaderboard::new("bench.board", [SCORES]).by(|[total]| Some(total));

fn leaderboards(c: &mut Criterion) {
    let redis = find_server();
    if redis.is_none() {
        println!("no redis-server on the PATH: Redis is not measured");
    }
    for keys in [1_000, 1_000_000] {
        let mut leaderboard = MemoryLeaderboard::new(LEADERBOARD);
        let mut random = Random(keys);
        for key in 0..keys {
            leaderboard.set(key, Some(score(&mut random, key)));
        }
        let peer = redis.as_deref().map(|program| {
            let mut redis = Redis::start(program);
            redis.fill(keys);
            redis.assert_agrees(&leaderboard, keys);
            redis
        });
        let mut group = c.benchmark_group(format!("leaderboard, {keys} keys"));
        group
            .sample_size(20)
            .measurement_time(Duration::from_secs(2))
            .warm_up_time(Duration::from_millis(300));
        bench_keepcount(&mut group, &mut leaderboard, keys);
        if let Some(mut redis) = peer {
            bench_redis(&mut group, &mut redis, keys, "redis", 1);
            bench_redis(&mut group, &mut redis, keys, "redis, pipelined", PIPELINE);
        }
        group.finish();
    }
}

fn bench_keepcount(
    group: &mut BenchmarkGroup<'_, WallTime>,
    leaderboard: &mut MemoryLeaderboard<u64>,
    keys: u64,
) {
    let mut random = Random(7);
    group.bench_function("change/keepcount", |b| {
        b.iter(|| {
            let key = random.next() % keys;
            leaderboard.set(key, Some(score(&mut random, key)))
        });
    });
    group.bench_function("top 100/keepcount", |b| b.iter(|| leaderboard.top(100).unwrap()));
    group.bench_function("rank/keepcount", |b| {
        b.iter(|| leaderboard.rank(random.next() % keys).unwrap());
    });
}

fn bench_redis(
    group: &mut BenchmarkGroup<'_, WallTime>,
    redis: &mut Redis,
    keys: u64,
    name: &str,
    in_flight: u64,
) {
    let mut random = Random(7);
    let mut bench = |what: &str, send: &mut dyn FnMut(&mut Redis)| {
        group.bench_function(format!("{what}/{name}"), |b| {
            b.iter_custom(|count| redis.time(count, in_flight, send));
        });
    };
    bench("change", &mut |redis| {
        let key = random.next() % keys;
        redis.add(key, score(&mut random, key));
    });
    bench("top 100", &mut Redis::ask_top);
    bench("rank", &mut |redis| redis.ask_rank(random.next() % keys));
}

/// Returns a score below 2^53, which a double of Redis holds exactly. It differs for each key,
/// because Redis orders equal scores differently.
fn score(random: &mut Random, key: u64) -> i64 {
    i64::try_from((random.next() >> 34) << 20 | key).unwrap()
}

fn find_server() -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|folder| folder.join("redis-server"))
        .find(|program| program.is_file())
}

/// A Redis server with one connection, and the part of its protocol that this bench needs.
struct Redis {
    server: Child,
    output: Vec<u8>,
    input: BufReader<UnixStream>,
    line: Vec<u8>,
    _folder: TempDir,
}

impl Redis {
    fn start(program: &Path) -> Self {
        let folder = TempDir::new().unwrap();
        let socket = folder.path().join("redis.sock");
        let mut server = Command::new(program)
            .args([
                "--port",
                "0",
                "--save",
                "",
                "--appendonly",
                "no",
                "--daemonize",
                "no",
                "--unixsocket",
            ])
            .arg(&socket)
            .arg("--dir")
            .arg(folder.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        for _ in 0..500 {
            if let Ok(stream) = UnixStream::connect(&socket) {
                let input = BufReader::with_capacity(1 << 16, stream);
                return Self {
                    server,
                    output: Vec::new(),
                    input,
                    line: Vec::new(),
                    _folder: folder,
                };
            }
            sleep(Duration::from_millis(10));
        }
        server.kill().unwrap();
        server.wait().unwrap();
        panic!("redis-server does not listen");
    }

    /// Adds the same scores as the leaderboard has.
    fn fill(&mut self, keys: u64) {
        let mut random = Random(keys);
        let mut key = 0;
        self.time(keys, PIPELINE, &mut |redis| {
            redis.add(key, score(&mut random, key));
            key += 1;
        });
    }

    fn assert_agrees(&mut self, leaderboard: &MemoryLeaderboard<u64>, keys: u64) {
        let expected: Vec<_> = leaderboard
            .top(100)
            .unwrap()
            .iter()
            .flat_map(|line| [line.key.to_string(), line.score.to_string()])
            .collect();
        self.ask_top();
        assert_eq!(self.answer(), expected);
        let mut random = Random(9);
        for key in random.keys(1_000, keys) {
            self.ask_rank(key);
            assert_eq!(self.answer(), [(leaderboard.rank(key).unwrap().rank - 1).to_string()]);
        }
    }

    /// Sends `count` commands, `in_flight` at a time, and reads their replies. Returns the time of
    /// all.
    fn time(&mut self, count: u64, in_flight: u64, send: &mut dyn FnMut(&mut Self)) -> Duration {
        let begun = Instant::now();
        let mut left = count;
        while left > 0 {
            let now = left.min(in_flight);
            (0..now).for_each(|_| send(self));
            self.flush();
            (0..now).for_each(|_| self.reply(|text| _ = black_box(text)));
            left -= now;
        }
        begun.elapsed()
    }

    fn add(&mut self, key: u64, score: i64) {
        self.command(&["ZADD", "board", &score.to_string(), &key.to_string()]);
    }

    fn ask_top(&mut self) {
        self.command(&["ZREVRANGE", "board", "0", "99", "WITHSCORES"]);
    }

    fn ask_rank(&mut self, key: u64) {
        self.command(&["ZREVRANK", "board", &key.to_string()]);
    }

    fn command(&mut self, words: &[&str]) {
        write!(self.output, "*{}\r\n", words.len()).unwrap();
        for word in words {
            write!(self.output, "${}\r\n{word}\r\n", word.len()).unwrap();
        }
    }

    fn flush(&mut self) {
        self.input.get_mut().write_all(&self.output).unwrap();
        self.output.clear();
    }

    fn answer(&mut self) -> Vec<String> {
        let mut texts = Vec::new();
        self.flush();
        self.reply(|text| texts.push(String::from_utf8(text.to_vec()).unwrap()));
        texts
    }

    /// Reads one reply and passes on its texts and numbers.
    fn reply(&mut self, mut each: impl FnMut(&[u8])) {
        let mut left = 1;
        while left > 0 {
            left -= 1;
            self.line.clear();
            self.input.read_until(b'\n', &mut self.line).unwrap();
            let text = str::from_utf8(&self.line).unwrap().trim_end();
            match text.split_at(1) {
                (":" | "+", text) => each(text.as_bytes()),
                ("*", count) => left += count.parse::<usize>().unwrap(),
                ("$", len) => {
                    let len: usize = len.parse().unwrap();
                    self.line.resize(len + 2, 0);
                    self.input.read_exact(&mut self.line).unwrap();
                    each(&self.line[..len]);
                }
                _ => panic!("redis replies {text}"),
            }
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

criterion_group!(benches, leaderboards);
criterion_main!(benches);
