/* The shapes of the example's one layer: the golden file's weight, and a LoRA pair of rank 8. */
#ifndef ENGINE_LAYER_H
#define ENGINE_LAYER_H

#include "device.h"

enum { N = 33, K = 576, R = 8, BLOCK = 64, BLOCKS = N * K / BLOCK, NESTED = (BLOCKS + 255) / 256, MAX_M = 24 };
#define SCALE 2.0f /* alpha 16 over r 8 */

/* Trains a pair on the layer and prints how that went. `w`: the weight as bf16, for the checks. 1 if all is well. */
int train(const qk_nf4 *weight, const uint16_t *w, stream_t stream);

#endif
