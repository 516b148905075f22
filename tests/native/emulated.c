/* Calls of the library read from stdin, made, and their memory written to stdout: for machines that are emulated. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "statistics.h"

int unixent_rows(const Addresses *at, const Call *rest, int64_t isa);
int unixent_statistics(const Addresses *at, const Call *rest, const Statistics *asked, int64_t isa);
const char *unixent_isa(int64_t i);

/* Memory of the other process. */
typedef struct {
    int64_t address, size;
    char *copy;
} Memory;

static void take(void *out, size_t size) {
    if (size && fread(out, size, 1, stdin) != 1) exit(feof(stdin) ? 0 : 1);
}

static void *here(const Memory *memory, int64_t count, const void *there) {
    int64_t address = (int64_t)(intptr_t)there;
    for (int64_t i = 0; i < count; i++)
        if (address >= memory[i].address && address < memory[i].address + memory[i].size)
            return memory[i].copy + (address - memory[i].address);
    return NULL;
}

int main(void) {
    printf("%s\n", unixent_isa(0));
    fflush(stdout);
    for (;;) {
        int64_t is_statistics, count, status;
        Memory memory[32];
        void *there[10], *places[23];
        Addresses at;
        Call rest;
        Statistics asked;
        take(&is_statistics, sizeof is_statistics);
        take(&count, sizeof count);
        for (int64_t i = 0; i < count; i++) {
            take(&memory[i], 2 * sizeof(int64_t));
            /* As far from a multiple of 64 as there. */
            memory[i].copy = (char *)aligned_alloc(64, (size_t)(memory[i].size + 191) / 64 * 64) + memory[i].address % 64;
            take(memory[i].copy, (size_t)memory[i].size);
        }
        take(there, sizeof there);
        take(&rest, sizeof rest);
        for (int i = 0; i < 10; i++) there[i] = here(memory, count, there[i]);
        memcpy(&at, there, sizeof at);
        if (is_statistics) {
            take(&asked, sizeof asked);
            memcpy(places, &asked, sizeof places);
            for (int i = 0; i < 23; i++) places[i] = here(memory, count, places[i]);
            memcpy(&asked, places, sizeof places);
        }
        status = is_statistics ? unixent_statistics(&at, &rest, &asked, 0) : unixent_rows(&at, &rest, 0);
        fwrite(&status, sizeof status, 1, stdout);
        for (int64_t i = 0; i < count; i++) {
            fwrite(memory[i].copy, (size_t)memory[i].size, 1, stdout);
            free(memory[i].copy - memory[i].address % 64);
        }
        fflush(stdout);
    }
}
