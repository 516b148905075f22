/* What the handler in xla.c reads of XLA's stable C interface, xla/ffi/api/c_api.h, by names of its own. */
#ifndef UNIXENT_XLA_H
#define UNIXENT_XLA_H
#include <stddef.h>
#include <stdint.h>

enum { XLA_METADATA = 1, XLA_EXECUTE = 3, XLA_NO_MEMORY = 8, XLA_FLOAT32 = 11, XLA_FLOAT64 = 12 };

typedef struct XlaError XlaError;

typedef struct XlaExtension {
    size_t size;
    int type;
    struct XlaExtension *next;
} XlaExtension;

typedef struct {
    size_t size;
    XlaExtension *extensions;
    const char *message;
    int code;
} XlaErrorArguments;

typedef struct {
    size_t size;
    XlaExtension *extensions;
    int major, minor;
} XlaVersion;

typedef struct {
    size_t size;
    XlaExtension *extensions;
    XlaVersion version;
    const void *internal;
    XlaError *(*create_error)(XlaErrorArguments *arguments);
} XlaApi;

typedef struct {
    size_t size;
    XlaVersion version;
} XlaMetadata;

typedef struct {
    XlaExtension base;
    XlaMetadata *metadata;
} XlaMetadataExtension;

typedef struct {
    size_t size;
    XlaExtension *extensions;
    int type;
    void *data;
    int64_t rank, *shape;
} XlaBuffer;

typedef struct {
    int type;
    void *value;
} XlaScalar;

typedef struct {
    int type;
    size_t size;
    void *data;
} XlaArray;

typedef struct {
    size_t size_of_this;
    XlaExtension *extensions;
    int64_t size;
    int *types;
    XlaBuffer **buffers;
} XlaBuffers;

typedef struct {
    size_t size_of_this;
    XlaExtension *extensions;
    int64_t size;
    int *types;
    void **names, **values; /* sorted by name */
} XlaAttributes;

typedef struct {
    size_t size;
    XlaExtension *extensions;
    const XlaApi *api;
    void *context;
    int stage;
    XlaBuffers operands, results;
    XlaAttributes attributes;
} XlaFrame;
#endif
