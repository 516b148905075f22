/* Arrays in memory: numbers of any dtype read as T and written back, and where a position's lie. */

static inline T OF(get)(const char *p, int64_t type) {
    uint16_t h; float f; double d;
    switch (type) {
    case FLOAT16: memcpy(&h, p, 2); return (T)from_float16(h);
    case BFLOAT16: memcpy(&h, p, 2); return (T)from_bfloat16(h);
    case FLOAT32: memcpy(&f, p, 4); return (T)f;
    default: memcpy(&d, p, 8); return (T)d;
    }
}

static inline void OF(set)(char *p, int64_t type, T value) {
    uint16_t h; float f = (float)value; double d = value;
    switch (type) {
    case FLOAT16: h = to_float16(f); memcpy(p, &h, 2); break;
    case BFLOAT16: h = to_bfloat16(f); memcpy(p, &h, 2); break;
    case FLOAT32: memcpy(p, &f, 4); break;
    default: memcpy(p, &d, 8);
    }
}

/* n numbers of any dtype, step bytes apart, to numbers pitch apart; and back. */
static void OF(read)(T *restrict out, int64_t pitch, const char *in, int64_t step, int64_t type, int64_t n) {
    if (pitch == 1 && step == (int64_t)size_of(type)) {
        if (sizeof(T) == size_of(type)) { copy(out, in, (size_t)n * sizeof(T)); return; }
        if (sizeof(T) == 4 && type == FLOAT16) { floats_from_float16((float *)out, (const Half *)in, n); return; }
        if (type == BFLOAT16) {
            const Half *half = (const Half *)in;
            for (int64_t i = 0; i < n; i++) out[i] = (T)from_bfloat16(half[i]);
            return;
        }
    }
    switch (type) {
#define EACH(code) case code: for (int64_t i = 0; i < n; i++) out[i * pitch] = OF(get)(in + i * step, code); break;
    EACH(FLOAT16) EACH(BFLOAT16) EACH(FLOAT32) EACH(FLOAT64)
#undef EACH
    }
}

static void OF(write)(char *out, int64_t step, int64_t type, const T *restrict in, int64_t pitch, int64_t n) {
    if (pitch == 1 && step == (int64_t)size_of(type)) {
        if (sizeof(T) == size_of(type)) { copy(out, in, (size_t)n * sizeof(T)); return; }
        if (sizeof(T) == 4 && type == FLOAT16) { float16_from_floats((Half *)out, (const float *)in, n); return; }
        if (sizeof(T) == 4 && type == BFLOAT16) {
            Half *half = (Half *)out;
            for (int64_t i = 0; i < n; i++) half[i] = to_bfloat16((float)in[i]);
            return;
        }
    }
    switch (type) {
#define EACH(code) case code: for (int64_t i = 0; i < n; i++) OF(set)(out + i * step, code, in[i * pitch]); break;
    EACH(FLOAT16) EACH(BFLOAT16) EACH(FLOAT32) EACH(FLOAT64)
#undef EACH
    }
}

/* Numbers of the accumulation dtype that lie next to each other can be worked where they are. */
static inline int OF(is_direct)(const Array *a) {
    uintptr_t places = (uintptr_t)a->data;
    for (int i = 0; i < MAX_AXES; i++) places |= (uintptr_t)a->strides[i];
    return a->class_stride == (int64_t)sizeof(T) && size_of(a->type) == sizeof(T) && places % sizeof(T) == 0;
}

/* Bytes from the first position to that one. */
static int64_t OF(offset)(const Array *a, const Call *call, int64_t position) {
    int64_t offset = 0;
    for (int64_t axis = call->num_axes; axis-- > 0; position /= call->shape[axis])
        offset += position % call->shape[axis] * a->strides[axis];
    return offset;
}
