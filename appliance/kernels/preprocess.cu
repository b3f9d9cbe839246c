// Preprocess on the GPU, two kernels in a row; the definition they are held to is appliance/model/preprocess.py.
//
// gather: reads the camera's buffer once, row by row at its pitch, in its own format; leaves the ROI, halved as often
//         as the definition says, and the ROI's histogram and sum.
// sample: scales what gather left by bilinear interpolation, normalises it to planes of float, and sums the Laplacian.
//
// Every loop strides over its grid, so any launch shape is right; with one thread a block, and the words below defined
// away, the same source runs on a CPU (host.cpp), where the tests hold it to the reference.

#ifdef HOST
#define GLOBAL static void
#define DEVICE inline
#define SHARED static
#define SYNC()
#define ADD32(where, what) (*(where) += (what))
#define ADD64(where, what) (*(where) += (what))
#define MAX32(where, what) (*(where) = *(where) < (what) ? (what) : *(where))
#else
#define GLOBAL extern "C" __global__ void
#define DEVICE __device__ __forceinline__
#define SHARED __shared__
#define SYNC() __syncthreads()
#define ADD32(where, what) atomicAdd(where, what)
#define ADD64(where, what) atomicAdd(where, what)
#define MAX32(where, what) atomicMax(where, what)
#define float_bits(value) __float_as_uint(value)
#define COUNT_READ(bytes)
#endif

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

// Where the next frame lies. It stands in mapped memory and is filled before each launch: a captured graph keeps its
// arguments for ever, and the driver's buffers change from frame to frame.
struct Frame {
    const u8 *data;
    i64 pitch;
};

// What stays the same for one camera and one recipe.
struct Plan {
    int frame_width, frame_height;
    int x, y, width, height;      // the ROI, in pixels as delivered
    int image_width, image_height; // the ROI, or its Bayer quads
    int halvings;                 // after that
    int out_width, out_height;    // what they leave: image >> halvings
    int channels;                 // of the network: 1 or 3
    int colours[4];               // of a Bayer quad whose corner is the ROI's: 0 red, 1 green, 2 blue
    int balanced;                 // whether the gains are other than 1
    double gains[3];
    int target_width, target_height; // the network's input
    int left, top, content_width, content_height; // where the picture lies in it
    float pad;                    // a letterbox's grey
    float scale;                  // 1, or 255/65535 for words
    float mean[3], deviation[3];
};

struct Sums {
    u32 histogram[256];
    u64 total;
    i64 laplacian;
    u64 laplacian_squared;
};

struct Pixel {
    int c[3]; // red, green, blue; all alike for mono
};

// ---- one pixel of the ROI, as the format has it ---------------------------------------------------------------

DEVICE int byte_at(const u8 *at) {
    COUNT_READ(1);
    return *at;
}

DEVICE int word_at(const u8 *at) {
    COUNT_READ(2);
    return *(const u16 *)at;
}

DEVICE Pixel grey_pixel(int value) {
    Pixel pixel = {{value, value, value}};
    return pixel;
}

DEVICE int clamped(int value, int top) { return value < 0 ? 0 : value > top ? top : value; }

// BT.601, full range, in 1/65536.
DEVICE Pixel from_yuv(int luma, int u, int v) {
    u -= 128;
    v -= 128;
    Pixel pixel = {{clamped(luma + ((91881 * v + 32768) >> 16), 255),
                    clamped(luma + ((32768 - 22554 * u - 46802 * v) >> 16), 255),
                    clamped(luma + ((116130 * u + 32768) >> 16), 255)}};
    return pixel;
}

struct Mono8 {
    enum { TOP = 255, COLOUR = 0 };
    static DEVICE Pixel at(const Frame &f, const Plan &p, int x, int y) {
        return grey_pixel(byte_at(f.data + (p.y + y) * f.pitch + p.x + x));
    }
};

struct Mono16 {
    enum { TOP = 65535, COLOUR = 0 };
    static DEVICE Pixel at(const Frame &f, const Plan &p, int x, int y) {
        return grey_pixel(word_at(f.data + (p.y + y) * f.pitch + 2 * (p.x + x)));
    }
};

template <int RED> struct Thirds {
    enum { TOP = 255, COLOUR = 1 };
    static DEVICE Pixel at(const Frame &f, const Plan &p, int x, int y) {
        const u8 *row = f.data + (p.y + y) * f.pitch + 3 * (p.x + x);
        Pixel pixel = {{byte_at(row + RED), byte_at(row + 1), byte_at(row + 2 - RED)}};
        return pixel;
    }
};

// Two pixels share one U and one V. FIRST: where the first luma stands.
template <int FIRST> struct Packed {
    enum { TOP = 255, COLOUR = 1 };
    static DEVICE Pixel at(const Frame &f, const Plan &p, int x, int y) {
        const u8 *row = f.data + (p.y + y) * f.pitch;
        int column = p.x + x, pair = 4 * (column / 2);
        return from_yuv(byte_at(row + 2 * column + FIRST), byte_at(row + pair + 1 - FIRST), byte_at(row + pair + 3 - FIRST));
    }
};

struct Nv12 {
    enum { TOP = 255, COLOUR = 1 };
    static DEVICE Pixel at(const Frame &f, const Plan &p, int x, int y) {
        int row = p.y + y, column = p.x + x;
        const u8 *chroma = f.data + (p.frame_height + row / 2) * f.pitch + column / 2 * 2;
        return from_yuv(byte_at(f.data + row * f.pitch + column), byte_at(chroma), byte_at(chroma + 1));
    }
};

template <int BYTES> DEVICE int sensel(const Frame &f, int column, int row) {
    const u8 *at = f.data + row * f.pitch + (i64)BYTES * column;
    return BYTES == 1 ? byte_at(at) : word_at(at);
}

// One RGB pixel a quad: the first halving of a Bayer picture.
template <int BYTES> struct Quads {
    enum { TOP = BYTES == 1 ? 255 : 65535, COLOUR = 1 };
    static DEVICE Pixel at(const Frame &f, const Plan &p, int x, int y) {
        int column = p.x + 2 * x, row = p.y + 2 * y;
        Pixel pixel = {{0, 0, 0}};
        int greens = 0;
        for (int corner = 0; corner < 4; ++corner) {
            int value = sensel<BYTES>(f, column + (corner & 1), row + (corner >> 1));
            if (p.colours[corner] == 1)
                greens += value;
            else if (p.colours[corner] == 0)
                pixel.c[0] = value;
            else
                pixel.c[2] = value;
        }
        pixel.c[1] = (greens + 1) >> 1;
        return pixel;
    }
};

// Bilinear: each missing colour is the mean of its nearest neighbours of that colour, direct ones before diagonal
// ones, halves rounded up; what lies beyond the frame does not count.
template <int BYTES> struct Bayer {
    enum { TOP = BYTES == 1 ? 255 : 65535, COLOUR = 1 };
    static DEVICE Pixel at(const Frame &f, const Plan &p, int x, int y) {
        u32 near[3] = {0, 0, 0}, weight[3] = {0, 0, 0};
        int own = 0, own_colour = p.colours[2 * (y & 1) + (x & 1)];
        for (int down = -1; down <= 1; ++down)
            for (int right = -1; right <= 1; ++right) {
                int column = p.x + x + right, row = p.y + y + down;
                if (column < 0 || row < 0 || column >= p.frame_width || row >= p.frame_height)
                    continue;
                int value = sensel<BYTES>(f, column, row);
                int colour = p.colours[2 * ((y + down) & 1) + ((x + right) & 1)];
                u32 share = (down ? 1 : 2) * (right ? 1 : 2);
                if (!down && !right)
                    own = value;
                for (int c = 0; c < 3; ++c)
                    if (c == colour) {
                        near[c] += share * value;
                        weight[c] += share;
                    }
            }
        Pixel pixel;
        for (int c = 0; c < 3; ++c) {
            u32 by = weight[c] ? weight[c] : 1;
            pixel.c[c] = c == own_colour ? own : (int)((2 * near[c] + by) / (2 * by));
        }
        return pixel;
    }
};

// ---- gather -----------------------------------------------------------------------------------------------------

DEVICE int luma_of(const Pixel &pixel) {
    return (int)((9798u * pixel.c[0] + 19235u * pixel.c[1] + 3735u * pixel.c[2] + 16384u) >> 15);
}

template <class Format> DEVICE Pixel fetch(const Frame &f, const Plan &p, int x, int y) {
    Pixel pixel = Format::at(f, p, x, y);
    if (Format::COLOUR && p.balanced)
        for (int c = 0; c < 3; ++c) {
            double gained = (double)pixel.c[c] * p.gains[c] + 0.5;
            pixel.c[c] = gained >= Format::TOP ? Format::TOP : (int)gained;
        }
    return pixel;
}

// (a + b + c + d + 2) >> 2, `halvings` times over one block, in the order of a Z: each level's four are complete
// before the next level's begin, so each rounds as the definition has it and nothing but five sums is kept.
template <class Format, class Stored>
DEVICE void one_block(const Frame &f, const Plan &p, int column, int row, u32 *histogram, u64 *total, Stored *halved) {
    int side = 1 << p.halvings;
    bool whole = column < p.out_width && row < p.out_height;
    bool mono = !Format::COLOUR || p.channels == 1;
    int sums[3][6] = {{0, 0, 0, 0, 0, 0}, {0, 0, 0, 0, 0, 0}, {0, 0, 0, 0, 0, 0}};
    int result[3] = {0, 0, 0};
    for (int at = 0; at < side * side; ++at) {
        int dx = 0, dy = 0;
#pragma unroll
        for (int level = 0; level < 6; ++level) {
            dx |= ((at >> (2 * level)) & 1) << level;
            dy |= ((at >> (2 * level + 1)) & 1) << level;
        }
        int x = column * side + dx, y = row * side + dy;
        if (x >= p.image_width || y >= p.image_height)
            continue; // a block over the edge is only counted
        Pixel pixel = fetch<Format>(f, p, x, y);
        int grey = Format::COLOUR ? luma_of(pixel) : pixel.c[0];
        ADD32(&histogram[Format::TOP > 255 ? grey >> 8 : grey], 1u);
        *total += grey;
        if (!whole)
            continue;
#pragma unroll
        for (int c = 0; c < 3; ++c) {
            if (mono && c)
                break;
            int value = mono ? grey : pixel.c[c];
            bool complete = true;
#pragma unroll
            for (int level = 0; level < 6; ++level)
                if (complete && level < p.halvings) {
                    sums[c][level] += value;
                    complete = ((at >> (2 * level)) & 3) == 3;
                    if (complete) {
                        value = (sums[c][level] + 2) >> 2;
                        sums[c][level] = 0;
                    }
                }
            result[c] = value;
        }
    }
    if (!whole)
        return;
    i64 plane = (i64)p.out_width * p.out_height, place = (i64)row * p.out_width + column;
    halved[place] = (Stored)result[0];
    if (!mono) {
        halved[plane + place] = (Stored)result[1];
        halved[2 * plane + place] = (Stored)result[2];
    }
}

template <class Format, class Stored>
DEVICE void gather(const Frame *frame, const Plan &p, Stored *halved, Sums *sums) {
    SHARED u32 histogram[256];
    SHARED u64 total;
    for (int bin = threadIdx.x; bin < 256; bin += blockDim.x)
        histogram[bin] = 0;
    if (threadIdx.x == 0)
        total = 0;
    SYNC();
    Frame f = *frame;
    u64 own = 0;
    int side = 1 << p.halvings;
    int columns = (p.image_width + side - 1) >> p.halvings, rows = (p.image_height + side - 1) >> p.halvings;
    for (int row = blockIdx.x; row < rows; row += gridDim.x)
        for (int column = threadIdx.x; column < columns; column += blockDim.x)
            one_block<Format, Stored>(f, p, column, row, histogram, &own, halved);
    ADD64(&total, own);
    SYNC();
    for (int bin = threadIdx.x; bin < 256; bin += blockDim.x)
        if (histogram[bin])
            ADD32(&sums->histogram[bin], histogram[bin]);
    if (threadIdx.x == 0)
        ADD64(&sums->total, total);
}

// ---- sample -----------------------------------------------------------------------------------------------------

template <class Stored> DEVICE int halved_grey(const Plan &p, const Stored *halved, int channels, int x, int y) {
    i64 plane = (i64)p.out_width * p.out_height, place = (i64)y * p.out_width + x;
    if (channels == 1)
        return halved[place];
    Pixel pixel = {{halved[place], halved[plane + place], halved[2 * plane + place]}};
    return luma_of(pixel);
}

// rows/columns: for each of the content's, the upper or left neighbour; shares: how much the other one counts.
template <class Stored>
DEVICE void sample(const Plan &p, int channels, const Stored *halved, const int *rows, const float *row_shares,
                   const int *columns, const float *column_shares, float *tensor, Sums *sums) {
    i64 plane = (i64)p.out_width * p.out_height, area = (i64)p.target_width * p.target_height;
    i64 thread = (i64)blockIdx.x * blockDim.x + threadIdx.x, threads = (i64)gridDim.x * blockDim.x;
    for (i64 at = thread; at < area * p.channels; at += threads) {
        int c = (int)(at / area), y = (int)(at % area / p.target_width), x = (int)(at % p.target_width);
        float value = p.pad;
        int row = y - p.top, column = x - p.left;
        if (row >= 0 && column >= 0 && row < p.content_height && column < p.content_width) {
            const Stored *from = halved + (channels == 1 ? 0 : c * plane);
            int top = clamped(rows[row], p.out_height - 1), bottom = clamped(rows[row] + 1, p.out_height - 1);
            int left = clamped(columns[column], p.out_width - 1), right = clamped(columns[column] + 1, p.out_width - 1);
            float down = row_shares[row], across = column_shares[column];
            const Stored *upper = from + (i64)top * p.out_width, *lower = from + (i64)bottom * p.out_width;
            float first = upper[left] * p.scale * (1 - down) + lower[left] * p.scale * down;
            float second = upper[right] * p.scale * (1 - down) + lower[right] * p.scale * down;
            value = first * (1 - across) + second * across;
        }
        tensor[at] = (value / 255.0f - p.mean[c]) / p.deviation[c];
    }
    i64 sum = 0;
    u64 squares = 0;
    i64 inner_width = p.out_width - 2, inner = p.out_height < 3 || inner_width < 1 ? 0 : inner_width * (p.out_height - 2);
    for (i64 at = thread; at < inner; at += threads) {
        int x = (int)(at % inner_width) + 1, y = (int)(at / inner_width) + 1;
        i64 edge = (i64)halved_grey(p, halved, channels, x, y - 1) + halved_grey(p, halved, channels, x, y + 1) +
                   halved_grey(p, halved, channels, x - 1, y) + halved_grey(p, halved, channels, x + 1, y) -
                   4 * (i64)halved_grey(p, halved, channels, x, y);
        sum += edge;
        squares += (u64)(edge * edge);
    }
    SHARED i64 block_sum;
    SHARED u64 block_squares;
    if (threadIdx.x == 0) {
        block_sum = 0;
        block_squares = 0;
    }
    SYNC();
    ADD64((u64 *)&block_sum, (u64)sum);
    ADD64(&block_squares, squares);
    SYNC();
    if (threadIdx.x == 0) {
        ADD64((u64 *)&sums->laplacian, (u64)block_sum);
        ADD64(&sums->laplacian_squared, block_squares);
    }
}

// ---- what is launched ---------------------------------------------------------------------------------------------

#define GATHER(name, format, stored)                                                                                     \
    GLOBAL gather_##name(const Frame *frame, const Plan plan, stored *halved, Sums *sums) {                              \
        gather<format, stored>(frame, plan, halved, sums);                                                               \
    }
#define SAMPLE(name, stored)                                                                                             \
    GLOBAL sample_##name(const Plan plan, int channels, const stored *halved, const int *rows, const float *row_shares,   \
                         const int *columns, const float *column_shares, float *tensor, Sums *sums) {                    \
        sample<stored>(plan, channels, halved, rows, row_shares, columns, column_shares, tensor, sums);                  \
    }

GATHER(mono8, Mono8, u8)
GATHER(mono16, Mono16, u16)
GATHER(rgb8, Thirds<0>, u8)
GATHER(bgr8, Thirds<2>, u8)
GATHER(yuyv, Packed<0>, u8)
GATHER(uyvy, Packed<1>, u8)
GATHER(nv12, Nv12, u8)
GATHER(bayer8, Bayer<1>, u8)
GATHER(bayer16, Bayer<2>, u16)
GATHER(quads8, Quads<1>, u8)
GATHER(quads16, Quads<2>, u16)
SAMPLE(u8, u8)
SAMPLE(u16, u16)
