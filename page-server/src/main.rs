//! `godwit-page-server`: arguments and exit codes, nothing else.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use godwit_page_server::cli::{Arguments, Command, Serve};
use godwit_page_server::error::{ServeError, chain};
use godwit_page_server::serve;

fn main() -> ExitCode {
    if let Some(status) = godwit_page_server::restore::hidden_command(std::env::args_os()) {
        return ExitCode::from(u8::try_from(status).unwrap_or(1));
    }
    let arguments = Arguments::parse();
    godwit_page_server::keep_freed_memory();
    start_log(arguments.verbose);
    let done = match arguments.command {
        Command::Serve(arguments) => serve_until_told(arguments),
        Command::Session(arguments) => arguments.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("godwit-page-server: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn serve_until_told(arguments: Serve) -> Result<(), ServeError> {
    let drain_limit = arguments.drain_timeout();
    serve::run(arguments.options()?, drain_limit, |address| {
        // The line is for whoever started the server; that nobody reads it is no reason to stop.
        let mut out = std::io::stdout();
        let _ = writeln!(out, "listening on {address}").and_then(|()| out.flush());
    })
}

fn start_log(verbose: u8) {
    let default = match verbose {
        0 => "info",
        1 => "debug",
        _ => "trace",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(format!("warn,godwit={default}")));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
