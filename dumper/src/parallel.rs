//! The same look at many processes or threads, at several of them at the same time: `/proc` answers each on its own.

use std::sync::LazyLock;

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::refusal::Findings;

/// Threads at most.
const THREADS_MAX: usize = 16;
/// Things from which on it is worth to wake other threads.
const WORTH: usize = 16;
/// Things that a thread takes at a time, at least.
const AT_A_TIME: usize = 4;

/// `None` where no thread is to be had: then all is done by the caller.
static POOL: LazyLock<Option<ThreadPool>> = LazyLock::new(|| {
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get().min(THREADS_MAX));
    ThreadPoolBuilder::new().num_threads(threads).thread_name(|at| format!("look-{at}")).build().ok()
});

/// Starts the threads. They run where the caller may.
pub fn start() {
    LazyLock::force(&POOL);
}

/// Does `work` with each of `items`; what came of it, in their order.
///
/// # Errors
/// The first failure, in that order. All the others are done.
pub fn each<I: Send, T: Send, E: Send>(
    items: impl IntoIterator<Item = I>,
    work: impl Fn(I) -> Result<T, E> + Send + Sync,
) -> Result<Vec<T>, E> {
    let items: Vec<I> = items.into_iter().collect();
    let done: Vec<Result<T, E>> = match POOL.as_ref().filter(|_| items.len() >= WORTH) {
        Some(pool) => pool.install(|| items.into_par_iter().with_min_len(AT_A_TIME).map(&work).collect()),
        None => items.into_iter().map(work).collect(),
    };
    done.into_iter().collect()
}

/// Looks at each of `items`; all that is found is put to `findings`, in their order.
///
/// # Errors
/// As [`each`].
pub fn look<I: Send, E: Send>(
    items: impl IntoIterator<Item = I>,
    findings: &mut Findings,
    look: impl Fn(I, &mut Findings) -> Result<(), E> + Send + Sync,
) -> Result<(), E> {
    let found = each(items, |item| {
        let mut found = Findings::default();
        look(item, &mut found)?;
        Ok(found)
    })?;
    found.into_iter().for_each(|found| findings.append(found));
    Ok(())
}

#[cfg(test)]
mod tests {
    use nix::unistd::Pid;

    use super::*;
    use crate::refusal::Subject;

    #[test]
    fn answers_and_findings_come_in_order_and_the_first_failure_counts() {
        for many in [3, 200] {
            let twice: Result<Vec<i32>, ()> = each(0..many, |number| Ok(2 * number));
            assert_eq!(twice.unwrap(), (0..many).map(|number| 2 * number).collect::<Vec<_>>());
            let failed: Result<Vec<i32>, i32> =
                each(0..many, |number| if number >= 2 { Err(number) } else { Ok(0) });
            assert_eq!(failed, Err(2));
            let mut findings = Findings::default();
            look(1..=many, &mut findings, |number, found| {
                found.lose(Subject::Process(Pid::from_raw(number)), "it");
                Ok::<(), ()>(())
            })
            .unwrap();
            let lost: Vec<_> = findings.losses.iter().map(|loss| loss.subject.clone()).collect();
            let all: Vec<_> = (1..=many).map(|number| Subject::Process(Pid::from_raw(number))).collect();
            assert_eq!(lost, all);
        }
    }
}
