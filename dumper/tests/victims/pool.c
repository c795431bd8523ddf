/*
 * A server with workers forked in advance, under load: the root sends jobs down one pipe a worker, the workers answer
 * through one pipe they share, and count in shared memory. When it is asked the load ends: every job was done exactly
 * once, by the worker it was given to, with the right result.
 *
 * pool [WORKERS [JOBS_A_MS]] (4, 4)
 */
#include "tree.h"

#define WORKERS_MAX 64
#define IDS_MAX (1u << 22)

struct job {
	uint32_t id, rounds;
	uint64_t seed;
};
struct answer {
	uint32_t id, worker;
	uint64_t result;
};
struct score {
	uint64_t jobs, sum;
	char rest[48];
};
static struct score *scores;
static int workers = 4, job_pipes[WORKERS_MAX][2], answers[2];
static uint8_t *given, *done;
static uint32_t sent, received;

static struct job job_of(uint32_t id)
{
	return (struct job){ id, 50 + id % 200, mix(id) };
}

static uint64_t result_of(struct job job)
{
	uint64_t value = job.seed;
	for (uint32_t i = 0; i < job.rounds; i++)
		value = mix(value ^ job.id);
	return value;
}

/* Exactly `size` bytes; false at the end of the stream. */
static bool read_whole(int fd, void *into, size_t size)
{
	size_t have = 0;
	while (have < size) {
		ssize_t n = read(fd, (char *)into + have, size - have);
		if (n == -1 && errno == EINTR)
			continue;
		if (n <= 0) {
			if (n < 0 || have)
				fail("a message is cut at %zu: %s", have, n < 0 ? strerror(errno) : "end");
			return false;
		}
		have += n;
	}
	return true;
}

/* One write: messages are smaller than what a pipe takes at once, so that those of several never mix. */
static void write_whole(int fd, const void *from, size_t size)
{
	ssize_t n;
	do
		n = write(fd, from, size);
	while (n == -1 && errno == EINTR);
	if (n != (ssize_t)size)
		fail("write of %zu bytes: %zd %s", size, n, n < 0 ? strerror(errno) : "");
}

static int worker(void *argument)
{
	int me = (intptr_t)argument;
	struct job job;
	uint64_t jobs = 0, sum = 0;
	for (int i = 0; i < workers; i++) {
		close(job_pipes[i][1]);
		if (i != me)
			close(job_pipes[i][0]);
	}
	close(answers[0]);
	struct place place = place_of_self();
	task_ready();
	while (read_whole(job_pipes[me][0], &job, sizeof job)) {
		struct answer answer = { job.id, me, result_of(job) };
		jobs++;
		sum += answer.result;
		scores[me].jobs++;
		scores[me].sum += answer.result;
		write_whole(answers[1], &answer, sizeof answer);
	}
	expect_place(place);
	expect("jobs on the score board", jobs, scores[me].jobs);
	expect("sum on the score board", sum, scores[me].sum);
	return 20 + me % 100;
}

static void take(const struct answer *answer)
{
	if (answer->id >= sent || answer->worker >= (uint32_t)workers) {
		fail("an answer for job %u of worker %u of %u sent", answer->id, answer->worker, sent);
		return;
	}
	if (done[answer->id]++)
		fail("job %u is done %d times", answer->id, done[answer->id]);
	if (given[answer->id] != answer->worker)
		fail("job %u was given to %u, %u answers", answer->id, given[answer->id], answer->worker);
	if (answer->result != result_of(job_of(answer->id)))
		fail("job %u: wrong result", answer->id);
	received++;
}

int main(int argc, char **argv)
{
	pid_t pids[WORKERS_MAX];
	char name[16];
	int rate = argc > 2 ? atoi(argv[2]) : 4;
	workers = argc > 1 ? atoi(argv[1]) : 4;
	tree_start();
	if (workers < 1 || workers > WORKERS_MAX)
		broken("1 to %d workers", WORKERS_MAX);
	given = must(mmap(NULL, IDS_MAX, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	done = must(mmap(NULL, IDS_MAX, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	scores = tree_shared(WORKERS_MAX * sizeof *scores);
	must(pipe(answers));
	for (int i = 0; i < workers; i++)
		must(pipe2(job_pipes[i], O_CLOEXEC));
	for (intptr_t i = 0; i < workers; i++) {
		snprintf(name, sizeof name, "worker-%d", (int)i);
		pids[i] = tree_fork(name, worker, (void *)i);
	}
	for (int i = 0; i < workers; i++)
		close(job_pipes[i][0]);
	close(answers[1]);
	must(fcntl(answers[0], F_SETFL, O_NONBLOCK));
	tree_all_set(workers);

	bool ready = false;
	struct answer answer;
	int64_t until = now_ns(CLOCK_MONOTONIC) + LIFE_SECONDS * 1000000000ll;
	while (!victim_asked() && now_ns(CLOCK_MONOTONIC) < until) {
		/* Not more at once than the smallest pipe takes. */
		for (int i = 0; i < rate && sent < IDS_MAX && sent - received < 64; i++) {
			struct job job = job_of(sent);
			uint32_t to = mix(sent) % workers;
			given[sent++] = to;
			write_whole(job_pipes[to][1], &job, sizeof job);
		}
		for (ssize_t n; (n = read(answers[0], &answer, sizeof answer)) > 0;) {
			expect("size of an answer", sizeof answer, n);
			take(&answer);
		}
		/* Not before the load is there. */
		if (!ready && received >= 100) {
			victim_ready();
			ready = true;
		}
		nap_ms(1);
	}
	for (int i = 0; i < workers; i++)
		close(job_pipes[i][1]);
	must(fcntl(answers[0], F_SETFL, 0));
	while (read_whole(answers[0], &answer, sizeof answer))
		take(&answer);
	expect("answers", sent, received);
	for (uint32_t id = 0; id < sent; id++)
		if (done[id] != 1)
			fail("job %u is done %d times", id, done[id]);
	uint64_t jobs = 0;
	for (int i = 0; i < workers; i++) {
		snprintf(name, sizeof name, "worker-%d", i);
		tree_expect_exit(name, pids[i], 20 + i % 100);
		jobs += scores[i].jobs;
	}
	expect("jobs on the score board", sent, jobs);
	tree_expect_no_child();
	victim_end();
}
