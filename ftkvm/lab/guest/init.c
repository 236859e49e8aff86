/*
 * The lab's guest: process 1 and all there is above the kernel.
 *
 * It loads its modules, configures eth0 from the kernel's command line (ftlab.ip=ADDRESS/LENGTH) and serves, one process
 * per connection:
 *
 *   7001 counter   a line "N" every 10 ms, N = 1, 2, 3 ... for this connection
 *   7002 echo      also by UDP
 *   7003 ledger    "REC N TEXT" -> record N is written through to sector N of the disk, then "ACK N"
 *                  "READ N"     -> "DATA N TIMES TEXT" or "NONE N"
 *   7004 sink      reads and forgets
 *   7005 source    sends without end
 *   7006 control   "poweroff", "reboot", "panic", "hang", "dirty PAGES_PER_SECOND" -> "OK"
 *                  "sound" -> "OK tainted N uptime S": what the kernel says of itself (an oops taints it for good), and the
 *                  seconds since it booted
 *                  "hang agent": the guest agent is silent, all else goes on, until "wake agent"
 *                  "hang all": eth0 goes down and the kernel panics, without the reboot that follows "panic"
 *   7011 clocked counter: "N MONOTONIC_MS". The two copies of a protected VM never agree on the time, so every packet
 *                  of this one differs: the worst case for comparing.
 *
 * It is a QEMU guest agent as well, on the virtio-serial port org.qemu.guest_agent.0: guest-sync, guest-sync-delimited,
 * guest-ping, guest-info, guest-shutdown.
 *
 * A record is one sector of 512 bytes, little endian:
 *   0  "FTLEDGER"   8  number (8)   16  how often this number was written (4)   20  length of text (4)
 *   24 text         508  CRC-32 of bytes 0..507
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/input.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { SECTOR = 512, TEXT_AT = 24, TEXT_MAX = 480, CRC_AT = 508, LINE_MAX_BYTES = 1024 };

static char command_line[4096];
static int disk = -1;
static volatile struct {
    uint32_t dirty_rate; /* pages per second */
    uint32_t agent_hangs;
} *shared; /* by all processes */

/* On the serial console and, where there is a video device, on the screen. */
static void say(const char *text)
{
    int screen = open("/dev/tty0", O_WRONLY | O_NOCTTY | O_CLOEXEC);
    dprintf(1, "ftlab: %s\n", text);
    if (screen >= 0) {
        dprintf(screen, "ftlab: %s\r\n", text);
        close(screen);
    }
}

static void sleep_ms(long ms)
{
    struct timespec t = {ms / 1000, ms % 1000 * 1000000L};
    nanosleep(&t, NULL);
}

static int load_module(const char *name)
{
    char path[128];
    snprintf(path, sizeof path, "/modules/%s", name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    int result = syscall(SYS_finit_module, fd, "", 0);
    close(fd);
    return result;
}

static void load_modules(void)
{
    FILE *list = fopen("/modules/order", "r");
    char name[100];
    while (list && fscanf(list, "%99s", name) == 1)
        if (load_module(name))
            dprintf(1, "ftlab: module %s: %s\n", name, strerror(errno));
    if (list)
        fclose(list);
}

static void read_command_line(void)
{
    int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, command_line, sizeof command_line - 1);
    command_line[n > 0 ? n : 0] = 0;
    close(fd);
}

/* The value of KEY=VALUE on the kernel's command line, or NULL; `into` has room for 64 bytes. */
static const char *option(const char *key, char *into)
{
    const char *at = strstr(command_line, key);
    if (!at || at[strlen(key)] != '=')
        return NULL;
    return sscanf(at + strlen(key) + 1, "%63s", into) == 1 ? into : NULL;
}

static void interface_up(int sock, const char *name, const char *address, int length)
{
    struct ifreq req;
    memset(&req, 0, sizeof req);
    strncpy(req.ifr_name, name, IFNAMSIZ - 1);
    struct sockaddr_in *in = (struct sockaddr_in *)&req.ifr_addr;
    in->sin_family = AF_INET;
    if (address) {
        inet_pton(AF_INET, address, &in->sin_addr);
        ioctl(sock, SIOCSIFADDR, &req);
        in->sin_addr.s_addr = htonl(length ? ~0U << (32 - length) : 0);
        ioctl(sock, SIOCSIFNETMASK, &req);
    }
    if (ioctl(sock, SIOCGIFFLAGS, &req) == 0) {
        req.ifr_flags |= IFF_UP | IFF_RUNNING;
        ioctl(sock, SIOCSIFFLAGS, &req);
    }
}

static void configure_network(void)
{
    char value[64];
    int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    interface_up(sock, "lo", "127.0.0.1", 8);
    if (option("ftlab.ip", value)) {
        char *slash = strchr(value, '/');
        if (slash)
            *slash = 0;
        interface_up(sock, "eth0", value, slash ? atoi(slash + 1) : 24);
    }
    close(sock);
}

/* ---- lines ---------------------------------------------------------------------------------------------------- */

struct reader {
    int fd;
    size_t have;
    char buffer[4 * LINE_MAX_BYTES];
};

/* The next line without its end, or NULL at the end of the connection. */
static char *next_line(struct reader *r, char *line)
{
    for (;;) {
        char *end = memchr(r->buffer, '\n', r->have);
        size_t length = end ? (size_t)(end - r->buffer) : r->have;
        if (end || length >= LINE_MAX_BYTES) {
            size_t take = length < LINE_MAX_BYTES ? length : LINE_MAX_BYTES - 1;
            memcpy(line, r->buffer, take);
            line[take] = 0;
            size_t used = end ? length + 1 : length;
            memmove(r->buffer, r->buffer + used, r->have - used);
            r->have -= used;
            return line;
        }
        ssize_t n = read(r->fd, r->buffer + r->have, sizeof r->buffer - r->have);
        if (n <= 0)
            return NULL;
        r->have += n;
    }
}

static int send_all(int fd, const char *data, size_t length)
{
    while (length) {
        ssize_t n = write(fd, data, length);
        if (n <= 0)
            return -1;
        data += n;
        length -= n;
    }
    return 0;
}

/* ---- services ------------------------------------------------------------------------------------------------- */

static long long monotonic_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

static void count(int fd, int with_clock)
{
    char line[64];
    for (unsigned long n = 1;; n++) {
        int length = with_clock ? snprintf(line, sizeof line, "%lu %lld\n", n, monotonic_ms())
                                : snprintf(line, sizeof line, "%lu\n", n);
        if (send_all(fd, line, length))
            return;
        sleep_ms(10);
    }
}

static void counter(int fd) { count(fd, 0); }
static void clocked_counter(int fd) { count(fd, 1); }

static void echo(int fd)
{
    char data[65536];
    ssize_t n;
    while ((n = read(fd, data, sizeof data)) > 0)
        if (send_all(fd, data, n))
            return;
}

static void sink(int fd)
{
    static char data[262144];
    while (read(fd, data, sizeof data) > 0)
        ;
}

static void source(int fd)
{
    static char data[262144];
    while (send_all(fd, data, sizeof data) == 0)
        ;
}

static uint32_t crc32(const uint8_t *data, size_t length)
{
    uint32_t crc = ~0U;
    while (length--) {
        crc ^= *data++;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320U : 0);
    }
    return ~crc;
}

static int record_valid(const uint8_t *sector, uint64_t number)
{
    uint64_t found;
    uint32_t crc;
    memcpy(&found, sector + 8, 8);
    memcpy(&crc, sector + CRC_AT, 4);
    return !memcmp(sector, "FTLEDGER", 8) && found == number && crc == crc32(sector, CRC_AT);
}

/* Writes a record through to the medium; the file was opened O_DIRECT | O_DSYNC. Returns 0, or errno. */
static int write_record(uint8_t *sector, uint64_t number, const char *text)
{
    uint32_t times = 0, length = strnlen(text, TEXT_MAX), crc;
    off_t at = (off_t)number * SECTOR;
    if (pread(disk, sector, SECTOR, at) != SECTOR)
        return errno ? errno : EIO;
    if (record_valid(sector, number))
        memcpy(&times, sector + 16, 4);
    times++;
    memset(sector, 0, SECTOR);
    memcpy(sector, "FTLEDGER", 8);
    memcpy(sector + 8, &number, 8);
    memcpy(sector + 16, &times, 4);
    memcpy(sector + 20, &length, 4);
    memcpy(sector + TEXT_AT, text, length);
    crc = crc32(sector, CRC_AT);
    memcpy(sector + CRC_AT, &crc, 4);
    errno = EIO;
    return pwrite(disk, sector, SECTOR, at) == SECTOR ? 0 : errno;
}

static void ledger(int fd)
{
    struct reader r = {.fd = fd};
    char line[LINE_MAX_BYTES], answer[LINE_MAX_BYTES];
    uint8_t *sector = aligned_alloc(4096, 4096);
    while (next_line(&r, line)) {
        unsigned long long number;
        int at = 0, length;
        if (sscanf(line, "REC %llu %n", &number, &at) == 1 && at) {
            int error = write_record(sector, number, line + at);
            length = error ? snprintf(answer, sizeof answer, "ERR %llu %s\n", number, strerror(error))
                           : snprintf(answer, sizeof answer, "ACK %llu\n", number);
        } else if (sscanf(line, "READ %llu", &number) == 1) {
            uint32_t times, size;
            if (pread(disk, sector, SECTOR, (off_t)number * SECTOR) == SECTOR && record_valid(sector, number)) {
                memcpy(&times, sector + 16, 4);
                memcpy(&size, sector + 20, 4);
                length = snprintf(answer, sizeof answer, "DATA %llu %u %.*s\n", number, times,
                                  (int)(size < TEXT_MAX ? size : TEXT_MAX), (char *)sector + TEXT_AT);
            } else
                length = snprintf(answer, sizeof answer, "NONE %llu\n", number);
        } else
            length = snprintf(answer, sizeof answer, "ERR what?\n");
        if (send_all(fd, answer, length))
            return;
    }
}

static void hang(void)
{
    int rt = open("/proc/sys/kernel/sched_rt_runtime_us", O_WRONLY);
    if (rt >= 0 && write(rt, "-1", 2) < 0)
        return;
    for (long cpu = sysconf(_SC_NPROCESSORS_ONLN); cpu > 0; cpu--)
        if (fork() == 0) {
            struct sched_param p = {.sched_priority = 99};
            sched_setscheduler(0, SCHED_FIFO, &p);
            for (;;)
                ;
        }
}

static void trigger(char key)
{
    int fd = open("/proc/sysrq-trigger", O_WRONLY);
    if (fd >= 0 && write(fd, &key, 1) < 0)
        say("sysrq failed");
}

/*
 * A kernel that has panicked and stays so: nothing of this guest reaches a disk or the network any more, and only a reset
 * ends that. (A spinning real-time process is not enough: since Linux 6.12 the others still get 5 % of the time.)
 */
static void hang_all(void)
{
    struct ifreq req;
    int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), stay = open("/proc/sys/kernel/panic", O_WRONLY);
    if (stay < 0 || write(stay, "0", 1) < 0)
        say("a panic will not last");
    memset(&req, 0, sizeof req);
    strncpy(req.ifr_name, "eth0", IFNAMSIZ - 1);
    if (ioctl(sock, SIOCGIFFLAGS, &req) == 0) {
        req.ifr_flags &= ~IFF_UP;
        ioctl(sock, SIOCSIFFLAGS, &req);
    }
    trigger('c');
}

/* "OK tainted N uptime S". Source: Documentation/admin-guide/tainted-kernels.rst */
static void tell_soundness(int fd)
{
    char tainted[32] = "-1", answer[80];
    struct timespec now;
    int file = open("/proc/sys/kernel/tainted", O_RDONLY | O_CLOEXEC);
    ssize_t length = file < 0 ? -1 : read(file, tainted, sizeof tainted - 1);
    if (length > 0)
        tainted[length] = 0;
    if (file >= 0)
        close(file);
    clock_gettime(CLOCK_BOOTTIME, &now);
    length = snprintf(answer, sizeof answer, "OK tainted %d uptime %ld\n", atoi(tainted), (long)now.tv_sec);
    send_all(fd, answer, length);
}

static void control(int fd)
{
    struct reader r = {.fd = fd};
    char line[LINE_MAX_BYTES];
    unsigned rate;
    while (next_line(&r, line)) {
        int reset = 0;
        if (!strcmp(line, "poweroff"))
            reset = RB_POWER_OFF;
        else if (!strcmp(line, "reboot"))
            reset = RB_AUTOBOOT;
        else if (!strcmp(line, "panic") || !strcmp(line, "hang") || !strcmp(line, "hang all"))
            ;
        else if (!strcmp(line, "hang agent") || !strcmp(line, "wake agent"))
            shared->agent_hangs = line[0] == 'h';
        else if (sscanf(line, "dirty %u", &rate) == 1)
            shared->dirty_rate = rate;
        else if (!strcmp(line, "sound")) {
            tell_soundness(fd);
            continue;
        } else {
            send_all(fd, "ERR what?\n", 10);
            continue;
        }
        send_all(fd, "OK\n", 3);
        sleep_ms(reset ? 50 : 0); /* the answer may leave first */
        if (reset)
            reboot(reset);
        else if (!strcmp(line, "panic"))
            trigger('c');
        else if (!strcmp(line, "hang"))
            hang();
        else if (!strcmp(line, "hang all")) {
            sleep_ms(50);
            hang_all();
        }
    }
}

/* ---- background ----------------------------------------------------------------------------------------------- */

/* Writes to so many pages per second, in portions of 10 ms, round a region of a quarter of the memory. */
static void dirty_pages(void)
{
    long page = sysconf(_SC_PAGESIZE), pages = sysconf(_SC_PHYS_PAGES) / 4, at = 0;
    volatile char *region = NULL;
    double due = 0;
    for (;; sleep_ms(10)) {
        uint32_t rate = shared->dirty_rate;
        if (!rate)
            continue;
        if (!region)
            region = mmap(NULL, pages * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        for (due += rate / 100.0; due >= 1; due--, at = (at + 1) % pages)
            region[at * page]++;
    }
}

static void udp_echo(void)
{
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(7002)}, from;
    int sock = socket(AF_INET, SOCK_DGRAM, 0);
    bind(sock, (struct sockaddr *)&here, sizeof here);
    for (;;) {
        char data[2048];
        socklen_t size = sizeof from;
        ssize_t n = recvfrom(sock, data, sizeof data, 0, (struct sockaddr *)&from, &size);
        if (n >= 0)
            sendto(sock, data, n, 0, (struct sockaddr *)&from, size);
    }
}

/* The power button (virsh shutdown) ends the guest. */
static void watch_power_button(void)
{
    struct input_event event;
    int fd = -1;
    for (int i = 0; i < 8 && fd < 0; i++) {
        char path[32], name[64] = "";
        snprintf(path, sizeof path, "/dev/input/event%d", i);
        fd = open(path, O_RDONLY);
        if (fd >= 0 && (ioctl(fd, EVIOCGNAME(sizeof name), name) < 0 || !strstr(name, "Power Button"))) {
            close(fd);
            fd = -1;
        }
    }
    while (fd >= 0 && read(fd, &event, sizeof event) == sizeof event)
        if (event.type == EV_KEY && event.code == KEY_POWER && event.value == 1) {
            say("power button");
            reboot(RB_POWER_OFF);
        }
}

/* ---- guest agent ---------------------------------------------------------------------------------------------- */

/* The virtio-serial port with the guest agent's name, or -1: there is no udev that makes links by name. */
static int open_agent_port(void)
{
    DIR *ports = opendir("/sys/class/virtio-ports");
    struct dirent *entry;
    int found = -1;
    while (ports && found < 0 && (entry = readdir(ports))) {
        char path[320], name[64] = "";
        snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            continue;
        if (read(fd, name, sizeof name - 1) > 0 && !strcmp(strtok(name, "\n"), "org.qemu.guest_agent.0")) {
            snprintf(path, sizeof path, "/dev/%s", entry->d_name);
            found = open(path, O_RDWR | O_CLOEXEC);
        }
        close(fd);
    }
    if (ports)
        closedir(ports);
    return found;
}

static int asks_for(const char *line, const char *command)
{
    char quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\"", command);
    return strstr(line, quoted) != NULL;
}

static void agent_answer(int port, const char *line)
{
    char answer[256];
    int length;
    const char *id = strstr(line, "\"id\"");
    if (asks_for(line, "guest-sync") || asks_for(line, "guest-sync-delimited")) {
        long long number = id ? strtoll(id + strcspn(id, ":") + 1, NULL, 10) : 0;
        length = snprintf(answer, sizeof answer, "%s{\"return\": %lld}\n",
                          asks_for(line, "guest-sync") ? "" : "\xff", number);
    } else if (asks_for(line, "guest-ping"))
        length = snprintf(answer, sizeof answer, "{\"return\": {}}\n");
    else if (asks_for(line, "guest-info"))
        length = snprintf(answer, sizeof answer, "{\"return\": {\"version\": \"ftlab\", \"supported_commands\": []}}\n");
    else if (asks_for(line, "guest-shutdown")) {
        say("guest-shutdown");
        reboot(asks_for(line, "reboot") ? RB_AUTOBOOT : RB_POWER_OFF);
        return;
    } else
        length = snprintf(answer, sizeof answer,
                          "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"not in this guest\"}}\n");
    send_all(port, answer, length);
}

static void agent(void)
{
    struct reader r = {.fd = open_agent_port()};
    char line[LINE_MAX_BYTES];
    while (r.fd >= 0) {
        if (shared->agent_hangs) {
            sleep_ms(100);
            continue;
        }
        char *text = next_line(&r, line);
        if (!text)
            sleep_ms(200); /* nobody on the other side */
        else if (!shared->agent_hangs)
            agent_answer(r.fd, text);
    }
}

static void in_background(void (*work)(void))
{
    if (fork() == 0) {
        work();
        _exit(0);
    }
}

static void serve(uint16_t port, void (*service)(int))
{
    struct sockaddr_in6 here = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    int on = 1, sock = socket(AF_INET6, SOCK_STREAM, 0); /* IPv4 too: the socket is not v6-only */
    setsockopt(sock, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(sock, (struct sockaddr *)&here, sizeof here) || listen(sock, 64)) {
        dprintf(1, "ftlab: port %u: %s\n", port, strerror(errno));
        return;
    }
    if (fork())
        return;
    for (;;) {
        int fd = accept(sock, NULL, NULL);
        if (fd < 0)
            continue;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        if (fork() == 0) {
            service(fd);
            _exit(0);
        }
        close(fd);
    }
}

static void set_up(void)
{
    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("sysfs", "/sys", "sysfs", 0, NULL);
    int console = open("/dev/ttyS0", O_RDWR | O_NOCTTY);
    for (int fd = 0; console >= 0 && fd < 3; fd++)
        dup2(console, fd);
    signal(SIGCHLD, SIG_IGN); /* the kernel reaps */
    signal(SIGPIPE, SIG_IGN);
    read_command_line();
    load_modules();
    for (int wait = 0; wait < 100 && disk < 0; wait++) {
        disk = open("/dev/vda", O_RDWR | O_DIRECT | O_DSYNC);
        if (disk < 0 && (errno != ENOENT || strstr(command_line, "ftlab.probe")))
            break;
        if (disk < 0)
            sleep_ms(10);
    }
    configure_network();
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

int main(void)
{
    set_up();
    if (strstr(command_line, "ftlab.probe")) {
        say("ready");
        reboot(RB_POWER_OFF);
    }
    in_background(dirty_pages);
    in_background(udp_echo);
    in_background(watch_power_button);
    in_background(agent);
    serve(7001, counter);
    serve(7002, echo);
    serve(7003, ledger);
    serve(7004, sink);
    serve(7005, source);
    serve(7006, control);
    serve(7011, clocked_counter);
    say(disk < 0 ? "ready, no disk" : "ready");
    for (;;)
        pause();
}
