use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use futures::FutureExt;
use tokio::fs::File;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::super::log_format::Filter;
use super::super::query::LogOptions;
use super::{Chunk, Exit, Lines, LogStream, MAX_LINE_BYTES, QUEUE_CHUNKS, READ_BYTES, tail_start};

/// Far longer than anything here takes.
const DEADLINE: Duration = Duration::from_secs(30);

async fn read(content: &str, options: LogOptions) -> String {
    let dir = tempfile::tempdir().expect("temporary folder");
    let path = dir.path().join("0.log");
    std::fs::write(&path, content).expect("write");
    let stream = LogStream::open(&path, options, None).await.expect("open");
    let (sender, mut chunks) = mpsc::channel(QUEUE_CHUNKS);
    let sending = tokio::spawn(stream.run(sender));
    let mut all = Vec::new();
    while let Some(chunk) = chunks.recv().await {
        all.extend_from_slice(&chunk.expect("no error"));
    }
    sending.await.expect("task");
    String::from_utf8(all).expect("text")
}

fn log(lines: usize) -> String {
    (0..lines).map(|line| format!("1970-01-01T00:00:00Z stdout F line {line}\n")).collect()
}

#[tokio::test]
async fn a_whole_file_larger_than_a_read() {
    let lines = 3 * READ_BYTES / 20;
    let expected: String = (0..lines).map(|line| format!("line {line}\n")).collect();
    assert_eq!(read(&log(lines), LogOptions::default()).await, expected);
}

#[tokio::test]
async fn tails() {
    for (lines, tail, expected) in [(5, 2, "line 3\nline 4\n"), (2, 9, "line 0\nline 1\n"), (2, 0, "")] {
        let options = LogOptions { tail_lines: Some(tail), ..LogOptions::default() };
        assert_eq!(read(&log(lines), options).await, expected, "{lines} lines, tail {tail}");
    }
    let options = LogOptions { tail_lines: Some(1), ..LogOptions::default() };
    assert_eq!(read(&log(20_000), options).await, "line 19999\n");
}

#[tokio::test]
async fn an_unfinished_last_line_is_sent() {
    assert_eq!(read("1970-01-01T00:00:00Z stdout F no end", LogOptions::default()).await, "no end\n");
}

#[tokio::test]
async fn the_tail_of_an_empty_file_is_its_start() {
    let file = tempfile::tempfile().expect("file");
    assert_eq!(tail_start(&mut File::from_std(file), 3).await.expect("start"), 0);
}

#[tokio::test]
async fn tail_start_counts_over_block_borders() {
    let mut file = tempfile::tempfile().expect("file");
    let line = vec![b'x'; READ_BYTES - 1];
    for _ in 0..3 {
        file.write_all(&line).and_then(|()| file.write_all(b"\n")).expect("write");
    }
    let mut file = File::from_std(file);
    for lines in 0..=3_u64 {
        let start = tail_start(&mut file, lines).await.expect("start");
        assert_eq!(start, (3 - lines) * READ_BYTES as u64, "{lines} lines");
    }
}

#[test]
fn a_line_that_is_too_long_is_left_out_and_the_next_is_not() {
    let mut lines = Lines { filter: Filter::new(&LogOptions::default()), rest: Vec::new(), skipping: false };
    let mut out = Vec::new();
    for _ in 0..3 {
        lines.feed(&vec![b'x'; MAX_LINE_BYTES], &mut out);
    }
    assert!(lines.rest.len() <= MAX_LINE_BYTES);
    lines.feed(b"tail of it\n1970-01-01T00:00:00Z stdout F ne", &mut out);
    lines.feed(b"xt\n", &mut out);
    assert_eq!(String::from_utf8(out).expect("text"), "next\n");
}

fn append(path: &Path, text: &str) {
    let mut file = OpenOptions::new().create(true).append(true).open(path).expect("open");
    writeln!(file, "1970-01-01T00:00:00Z stdout F {text}").expect("write");
}

async fn expect(chunks: &mut mpsc::Receiver<Chunk>, expected: &str) {
    let mut read = String::new();
    while read.len() < expected.len() {
        let chunk =
            timeout(DEADLINE, chunks.recv()).await.expect("in time").expect("more").expect("no error");
        read.push_str(std::str::from_utf8(&chunk).expect("text"));
    }
    assert_eq!(read, expected);
}

#[tokio::test]
async fn following_sees_new_lines_a_rotation_and_the_exit() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let path = dir.path().join("0.log");
    append(&path, "before");
    let (exit_now, exited) = oneshot::channel::<()>();
    let exit = Exit { exited: false, exit: exited.map(|_| ()).boxed() };
    let options = LogOptions { follow: true, ..LogOptions::default() };
    let stream = LogStream::open(&path, options, Some(exit)).await.expect("open");
    let (sender, mut chunks) = mpsc::channel(QUEUE_CHUNKS);
    let following = tokio::spawn(stream.run(sender));

    expect(&mut chunks, "before\n").await;
    append(&path, "after");
    expect(&mut chunks, "after\n").await;
    // Rotated: the last line of the old file and the first of the new one both arrive.
    std::fs::rename(&path, dir.path().join("0.log.1")).expect("rename");
    append(&dir.path().join("0.log.1"), "late");
    append(&path, "fresh");
    expect(&mut chunks, "late\nfresh\n").await;

    append(&path, "last");
    exit_now.send(()).expect("followed");
    expect(&mut chunks, "last\n").await;
    assert!(timeout(DEADLINE, chunks.recv()).await.expect("in time").is_none());
    timeout(DEADLINE, following).await.expect("in time").expect("task");
}

#[tokio::test]
async fn following_ends_when_the_caller_goes_away() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let path = dir.path().join("0.log");
    append(&path, "one");
    let exit = Exit { exited: false, exit: std::future::pending().boxed() };
    let options = LogOptions { follow: true, ..LogOptions::default() };
    let stream = LogStream::open(&path, options, Some(exit)).await.expect("open");
    let (sender, chunks) = mpsc::channel(QUEUE_CHUNKS);
    let following = tokio::spawn(stream.run(sender));
    drop(chunks);
    timeout(DEADLINE, following).await.expect("in time").expect("task");
}

#[tokio::test]
async fn the_log_of_an_exited_container_ends_although_it_is_followed() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let path = dir.path().join("0.log");
    append(&path, "all");
    let exit = Exit { exited: true, exit: std::future::pending().boxed() };
    let options = LogOptions { follow: true, ..LogOptions::default() };
    let stream = LogStream::open(&path, options, Some(exit)).await.expect("open");
    let (sender, mut chunks) = mpsc::channel(QUEUE_CHUNKS);
    tokio::spawn(stream.run(sender));
    expect(&mut chunks, "all\n").await;
    assert!(timeout(DEADLINE, chunks.recv()).await.expect("in time").is_none());
}
