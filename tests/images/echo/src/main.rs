//! The program of the test image `echo`: a server that says which pod it is, and the load that proves a Service.
//!
//! `echo serve [PORT]` answers HTTP, plain TCP lines and UDP datagrams on one port. After SIGTERM it goes on for two seconds,
//! as a well-behaved server does while the last clients learn that it is leaving, and asks kept-alive clients to come again.
//! `echo load HOST:PORT …` keeps four kinds of traffic running until its time is over or SIGTERM comes, and counts what failed.

mod load;
mod serve;

use std::process::ExitCode;

const USAGE: &str = "usage: echo serve [PORT] | echo load HOST:PORT SECONDS CONNECTIONS_PER_SECOND | echo ask HOST:PORT COUNT | echo get HOST:PORT";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["serve"] => serve::run(8080),
        ["serve", port] => port.parse().map_err(|_| format!("{port:?} is not a port")).and_then(serve::run),
        ["get", target] => load::get(target),
        ["ask", target, count] => load::ask(target, count),
        ["load", target, seconds, rate] => load::run(target, seconds, rate),
        _ => Err(USAGE.to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("echo: {message}");
            ExitCode::FAILURE
        }
    }
}
