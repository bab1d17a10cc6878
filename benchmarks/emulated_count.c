// A plugin of qemu-user that counts the instructions of the program it runs. Part of edgepack. MIT.
//
//     cc -shared -fPIC -O2 emulated_count.c -o count.so;  qemu-aarch64 -plugin count.so,out=FILE PROGRAM
//
// The program marks a place by a system call whose first argument is MARK; each mark adds the count until then to FILE.
// Exact for one thread: several may lose counts to each other. Declared from qemu-plugin.h of version 1, which QEMU 7 and 8
// load.
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define MARK 0x7ed6ed6 // no process has so high a number: getpgid(MARK) does nothing

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int add_u64, void *to, uint64_t what);
extern void qemu_plugin_register_vcpu_syscall_cb(
    plugin_id,
    void (*)(plugin_id, unsigned cpu, int64_t number, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
             uint64_t));

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

static uint64_t counted;
static FILE *out;

static void translated(plugin_id id, struct qemu_plugin_tb *block) {
    qemu_plugin_register_vcpu_tb_exec_inline(block, 0, &counted, qemu_plugin_tb_n_insns(block));
}

static void called(plugin_id id, unsigned cpu, int64_t number, uint64_t first, uint64_t b, uint64_t c, uint64_t d,
                   uint64_t e, uint64_t f, uint64_t g, uint64_t h) {
    if (first == MARK) {
        fprintf(out, "%" PRIu64 "\n", counted);
        fflush(out);
    }
}

__attribute__((visibility("default"))) int qemu_plugin_install(plugin_id id, const void *info, int count, char **given) {
    if (count != 1 || strncmp(given[0], "out=", 4) != 0 || (out = fopen(given[0] + 4, "w")) == NULL) {
        return 1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
