/* The values of the named 4-bit codebooks, by code. Kernels are handed whatever codebook there is, and know none of
 * these.
 *
 * nf4: quantiles of the normal distribution with an exact zero (QLoRA, Dettmers et al. 2023). fp4: a sign, two exponent
 * bits and one mantissa bit, over its largest value. af4: AbnormalFloat (Yoshida 2023) for blocks of 64. */
static const float nf4_values[16] = {
    -1.0f,      -0.6961928f, -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f, -0.091050036f, 0.0f,
    0.0795803f, 0.1609302f,  0.2461123f,   0.33791524f, 0.44070983f,  0.562617f,    0.72295684f,   1.0f,
};
static const float fp4_values[16] = {
    0.0f, 0.0052083335f,  0.6666667f,  1.0f,  0.33333334f,  0.5f,  0.16666667f,  0.25f,
    0.0f, -0.0052083335f, -0.6666667f, -1.0f, -0.33333334f, -0.5f, -0.16666667f, -0.25f,
};
static const float af4_values[16] = {
    1.0f, 0.72424865f,  0.55496234f,  0.42563882f,  0.31675667f, 0.21961275f, 0.12934484f, 0.04273164f,
    0.0f, -0.04934812f, -0.14982478f, -0.25607553f, -0.3736951f, -0.5124374f, -0.6944101f, -1.0f,
};
