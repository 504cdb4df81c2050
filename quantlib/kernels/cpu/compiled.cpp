// The products of compiled_products.h as functions that Python calls. quantlib/kernels/cpu/compiled.py builds this file and
// those beside it into one library.

#include "compiled_products.h"

extern "C" {

extern const char quantlib_key[] = QUANTLIB_KEY;  // what it was built from: compiled.py looks for it in the file

void int4_matmul_float32(const Product<Float32>* p) { int4_matmul(*p); }

void int8_matmul_float32(const RowsProduct<Float32>* p) { int8_matmul(*p); }

#ifdef BFLOAT16_DOT_PRODUCTS
extern const int multiplies_bfloat16 = 1;
void int4_matmul_bfloat16(const Product<BFloat16>* p) { int4_matmul(*p); }
void int8_matmul_bfloat16(const RowsProduct<BFloat16>* p) { int8_matmul(*p); }
#else
extern const int multiplies_bfloat16 = 0;
void int4_matmul_bfloat16(const Product<Float32>* p) { in_float32(*p, int4_matmul<Float32>); }
void int8_matmul_bfloat16(const RowsProduct<Float32>* p) { in_float32(*p, int8_matmul<Float32>); }
#endif
}
