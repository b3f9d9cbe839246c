// The kernels on a CPU, one thread a block: what g++ makes of the very source that the GPU runs.
#include <cmath>
#include <cstring>

#define HOST
struct Place {
    unsigned x;
};
static Place threadIdx = {0}, blockDim = {1}, blockIdx = {0}, gridDim = {1};
static unsigned long long bytes_read;
#define COUNT_READ(bytes) (bytes_read += (bytes))
static unsigned float_bits(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
#include "preprocess.cu"
#include "reduce.cu"

#define RUN(name, stored)                                                                                                \
    if (!std::strcmp(kernel, #name)) {                                                                                   \
        for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)                                                          \
            gather_##name(frame, *plan, (stored *)halved, sums);                                                         \
        return 0;                                                                                                        \
    }

extern "C" int run_gather(const char *kernel, unsigned blocks, const Frame *frame, const Plan *plan, void *halved, Sums *sums) {
    gridDim.x = blocks;
    RUN(mono8, u8)
    RUN(mono16, u16)
    RUN(rgb8, u8)
    RUN(bgr8, u8)
    RUN(yuyv, u8)
    RUN(uyvy, u8)
    RUN(nv12, u8)
    RUN(bayer8, u8)
    RUN(bayer16, u16)
    RUN(quads8, u8)
    RUN(quads16, u16)
    return 1;
}

extern "C" void run_sample(int words, unsigned blocks, const Plan *plan, int channels, const void *halved, const int *rows,
                           const float *row_shares, const int *columns, const float *column_shares, float *tensor, Sums *sums) {
    gridDim.x = blocks;
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
        if (words)
            sample_u16(*plan, channels, (const u16 *)halved, rows, row_shares, columns, column_shares, tensor, sums);
        else
            sample_u8(*plan, channels, (const u8 *)halved, rows, row_shares, columns, column_shares, tensor, sums);
}

extern "C" void run_reduce_map(unsigned blocks, const float *map, int count, float low, float high, void *shares, Extremes *extremes) {
    gridDim.x = blocks;
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
        reduce_map(map, count, low, high, (u8 *)shares, extremes);
}

extern "C" unsigned long long take_bytes_read() {
    unsigned long long told = bytes_read;
    bytes_read = 0;
    return told;
}

extern "C" unsigned long long sizes(int which) {
    return which == 0 ? sizeof(Frame) : which == 1 ? sizeof(Plan) : which == 2 ? sizeof(Sums) : sizeof(Extremes);
}
