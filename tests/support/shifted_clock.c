/* Loaded before libc (LD_PRELOAD): the calendar is SHIFTED_SECONDS ahead. Only what says what time it is; what
 * waits and the monotonic clock stay as they are. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long shift(void)
{
    static long seconds;
    static int known;
    if (!known) {
        const char *given = getenv("SHIFTED_SECONDS");
        seconds = given ? atol(given) : 0;
        known = 1;
    }
    return seconds;
}

int clock_gettime(clockid_t clock, struct timespec *answer)
{
    int failed = (int)syscall(SYS_clock_gettime, clock, answer);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        answer->tv_sec += shift();
    return failed;
}

int gettimeofday(struct timeval *answer, void *zone)
{
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    answer->tv_sec = now.tv_sec;
    answer->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *answer)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (answer)
        *answer = now.tv_sec;
    return now.tv_sec;
}
