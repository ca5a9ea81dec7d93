/* A weight from a safetensors file: 8 bytes of header length, a JSON header, the tensors' bytes. */
#ifndef ENGINE_WEIGHT_H
#define ENGINE_WEIGHT_H

#include "device.h"

typedef struct file {
    char *header, *data;
    size_t data_bytes;
} file;

static inline file read_file(const char *path) {
    file f = {NULL, NULL, 0};
    unsigned char length[8];
    FILE *in = fopen(path, "rb");
    long end;
    size_t header_bytes = 0;
    int i;
    if (in == NULL || fseek(in, 0, SEEK_END) != 0 || (end = ftell(in)) < 8 || fseek(in, 0, SEEK_SET) != 0)
        fail("the weight file cannot be read");
    if (fread(length, 1, 8, in) != 8) fail("the weight file cannot be read");
    for (i = 7; i >= 0; --i) header_bytes = header_bytes << 8 | length[i];
    if (header_bytes > (size_t)end - 8) fail("the weight file is no safetensors file");
    f.data_bytes = (size_t)end - 8 - header_bytes;
    f.header = (char *)calloc(header_bytes + 1, 1);
    f.data = (char *)malloc(f.data_bytes + 1);
    if (f.header == NULL || f.data == NULL) fail("memory");
    if (fread(f.header, 1, header_bytes, in) != header_bytes || fread(f.data, 1, f.data_bytes, in) != f.data_bytes)
        fail("the weight file is short");
    fclose(in);
    return f;
}

/* The bytes of one tensor, which has to have this many. */
static inline const void *tensor(const file *f, const char *name, size_t bytes) {
    char quoted[128];
    const char *entry, *offsets;
    unsigned long first, last;
    snprintf(quoted, sizeof quoted, "\"%s\":{", name);
    entry = strstr(f->header, quoted);
    offsets = entry == NULL ? NULL : strstr(entry, "\"data_offsets\":[");
    if (offsets == NULL || sscanf(offsets, "\"data_offsets\":[%lu,%lu]", &first, &last) != 2) fail(name);
    if (last > f->data_bytes || first > last || last - first != bytes) fail(name);
    return f->data + first;
}

#endif
