//! Trees of programs that nobody wrote for this: migrated in the middle of their work, restored by CRIU 4.1 and 4.2, and
//! checked when they are done.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use support::Scene;
use support::child::eventually;
use support::lab::BOTH;
use support::moved::{self, Moved};
use support::product::Server;
use support::victim::{Verdict, Victim, session_leader};

/// Starts a script as the leader of a session; it says READY once it works.
fn script(scene: &Scene, name: &str, program: &str, text: &str) -> Victim {
    let path = scene.dir().join(format!("{name}.script"));
    std::fs::write(&path, text).unwrap();
    let mut command = session_leader(program);
    command.arg(path);
    Victim::start_command(scene, name, command)
}

fn move_in_rounds(scene: &Scene, victim: &mut Victim, server: &Server) -> Moved {
    let moved = moved::migrate(scene, victim, server, &["--rounds", "3"]);
    assert!(moved.report["processes"].as_u64().unwrap() > 2, "{}", moved.report);
    // The loopback takes the largest packets that there are.
    assert!(moved.report["way"]["packet_bytes"].as_u64().unwrap() > 60_000, "{}", moved.report);
    moved
}

/// Three stages in a group of their own, each checking what the one before says, and a job that is stopped.
const PIPELINE: &str = r#"
set -m -o pipefail
first() { n=0; while [ ! -e check ]; do n=$((n+1)); echo $n; done; echo end; return 3; }
second() { while read -r x; do if [ "$x" = end ]; then echo end; return 5; fi; echo $((x*2)); done; return 9; }
third() {
    last=0
    while read -r x; do
        if [ "$x" = end ]; then echo $last > sum; return 0; fi
        if [ "$x" != $((last+2)) ]; then echo "FAIL gap after $last: $x"; return 7; fi
        last=$x
    done
    return 8
}
group() { cut -d' ' -f5 /proc/$1/stat; }
state() { cut -d' ' -f3 /proc/$1/stat; }
first | second | third &
sleep 1000 &
sleeper=$!
kill -STOP %2
until [ "$(state $sleeper)" = T ]; do sleep 0.01; done
echo "READY $$"
turns=0
while [ ! -e check ] && [ $turns -lt 3000 ]; do sleep 0.02; turns=$((turns+1)); done
wait %1
[ $? = 5 ] || echo "FAIL the pipeline ended with $?"
[ -s sum ] && [ $(cat sum) -gt 20 ] || echo "FAIL the pipeline moved nothing"
[ "$(state $sleeper)" = T ] || echo "FAIL the stopped job is $(state $sleeper)"
[ "$(group $sleeper)" = $sleeper ] || echo "FAIL the stopped job is in group $(group $sleeper)"
jobs %2 | grep -q Stopped || echo "FAIL the shell does not know the stopped job: $(jobs)"
kill -CONT %2
kill -TERM %2
wait %2
[ $? = 143 ] || echo "FAIL the other job ended with $?"
echo OK
"#;

#[test]
fn a_bash_pipeline_with_job_control() {
    require!("root", "criu-4.1", "criu-4.2", "page-server");
    for version in BOTH {
        let scene = Scene::new("pipeline");
        let server = Server::start(&scene, version);
        let mut victim = script(&scene, "pipeline", "bash", PIPELINE);
        let moved = move_in_rounds(&scene, &mut victim, &server);
        assert_eq!(moved.check(&victim), Verdict::Ok, "CRIU {}", version.text());
    }
}

/// Files of the build, each with a function that the next one calls.
const PARTS: usize = 40;

/// A build whose result is known.
fn sources(dir: &Path) {
    for part in 0..PARTS {
        let next = if part + 1 < PARTS { format!("part_{}(n)", part + 1) } else { "n".to_owned() };
        let mut text = format!("int part_{}(int n);\n#include <stdio.h>\n#include <string.h>\n", part + 1);
        for filler in 0..120 {
            text += &format!(
                "static int filler_{filler}(const char *s, int n) {{ char b[256]; int i, c = 0; for (i = 0; i < n; i++) \
                 c += snprintf(b, sizeof b, \"%s %d\", s, i) + (int)strlen(b); return c; }}\n"
            );
        }
        text += &format!(
            "int part_{part}(int n) {{ if (n < 0) return filler_{}(\"x\", n); n += {part}; return {next}; }}\n",
            part % 120
        );
        std::fs::write(dir.join(format!("part_{part}.c")), text).unwrap();
    }
    let main = "#include <stdio.h>\nint part_0(int n);\nint main(void) { printf(\"%d\\n\", part_0(7)); return 0; }\n";
    std::fs::write(dir.join("main.c"), main).unwrap();
    let objects: String = (0..PARTS).map(|part| format!(" part_{part}.o")).collect();
    let makefile = format!(
        "program: main.o{objects}\n\tcc -o $@ $^\n%.o: %.c\n\tcc -O2 -w -c -o $@ $<\n\t@echo $@ >> built\n"
    );
    std::fs::write(dir.join("Makefile"), makefile).unwrap();
}

/// GNU make 4.4 hands its jobs out by a named pipe unless told otherwise, and those are not dumped.
fn by_pipe() -> &'static str {
    let mut asked = Command::new("make");
    asked.args(["--jobserver-style=pipe", "--version"]);
    if asked.output().is_ok_and(|answer| answer.status.success()) { "--jobserver-style=pipe" } else { "" }
}

#[test]
fn make_in_the_middle_of_a_build() {
    require!("root", "make", "cc", "criu-4.1", "criu-4.2", "page-server");
    for version in BOTH {
        let scene = Scene::new("make");
        let server = Server::start(&scene, version);
        let build = format!(
            "echo READY $$\nuntil [ -e go ]; do sleep 0.01; done\nmake -j8 {} > make.log 2>&1\nstatus=$?\n\
             [ $status = 0 ] || {{ echo \"FAIL make ended with $status\"; tail -n 5 make.log | sed 's/^/FAIL /'; }}\n\
             until [ -e check ]; do sleep 0.02; done\n[ \"$(./program)\" = {} ] || echo \"FAIL $(./program)\"\necho OK\n",
            by_pipe(),
            7 + PARTS * (PARTS - 1) / 2
        );
        let mut victim = script(&scene, "make", "sh", &build);
        sources(victim.dir());
        victim.tell("go");
        let built = victim.dir().join("built");
        eventually("some parts are built", Duration::from_secs(30), || {
            std::fs::read_to_string(&built).is_ok_and(|text| text.lines().count() >= 3)
        });
        let moved = move_in_rounds(&scene, &mut victim, &server);
        assert_eq!(moved.check(&victim), Verdict::Ok, "CRIU {}: {}", version.text(), victim.log());
        assert_eq!(std::fs::read_to_string(&built).unwrap().lines().count(), PARTS + 1);
    }
}

/// Workers that take numbers from a queue and give their digests back, and that count what they did in shared memory.
const POOL: &str = r#"
import hashlib, multiprocessing, os, sys, time
from multiprocessing import shared_memory
WORKERS, SLOTS = 4, 4096
def say(text): os.write(1, (text + "\n").encode())
def begin(name, lock):
    global block, guard
    block, guard = shared_memory.SharedMemory(name=name), lock
def work(n):
    digest = hashlib.sha256(str(n).encode() * 200).hexdigest()
    with guard:
        at = (n % SLOTS) * 8
        count = int.from_bytes(block.buf[at:at + 8], "little")
        block.buf[at:at + 8] = (count + 1).to_bytes(8, "little")
    return n, digest
def main():
    context = multiprocessing.get_context("fork")
    shared = shared_memory.SharedMemory(create=True, size=SLOTS * 8)
    lock = context.Lock()
    done, bad = 0, 0
    with context.Pool(WORKERS, begin, (shared.name, lock)) as pool:
        say("READY %d" % os.getpid())
        deadline = time.monotonic() + 120
        asked = False
        while not asked and time.monotonic() < deadline:
            asked = os.path.exists("check")
            for n, digest in pool.imap_unordered(work, range(done, done + 200), 5):
                bad += digest != hashlib.sha256(str(n).encode() * 200).hexdigest()
            done += 200
        pool.close()
        pool.join()
        counts = [int.from_bytes(shared.buf[i * 8:i * 8 + 8], "little") for i in range(SLOTS)]
    expected = [done // SLOTS + (1 if i < done % SLOTS else 0) for i in range(SLOTS)]
    if bad: say("FAIL %d wrong digests" % bad)
    if counts != expected: say("FAIL counts: %d instead of %d" % (sum(counts), done))
    shared.close()
    shared.unlink()
    say("OK" if not bad and counts == expected else "BAD")
main()
"#;

#[test]
fn a_python_pool_with_shared_memory() {
    require!("root", "python3", "criu-4.1", "criu-4.2", "page-server");
    for version in BOTH {
        let scene = Scene::new("pool");
        let server = Server::start(&scene, version);
        let mut victim = script(&scene, "pool", "/usr/bin/python3", POOL);
        let moved = move_in_rounds(&scene, &mut victim, &server);
        assert_eq!(moved.check(&victim), Verdict::Ok, "CRIU {}: {}", version.text(), victim.log());
    }
}
