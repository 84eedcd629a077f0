"""float16 to float32 and back: an instruction where the CPU has one, else arithmetic. LLVM's own way without the instruction is a
function of a C compiler's library that no process here has loaded: it ends the process.
"""

from llvmlite import ir

from glmrun.kernels.simd.target import converts_halves
from glmrun.kernels.simd.types import F16, F32, I16, I32, call


def _like(value, element):
    """A type of as many elements as the value has."""
    return ir.VectorType(element, value.type.count) if isinstance(value.type, ir.VectorType) else element


def _constant(llvm_type, number):
    return ir.Constant(llvm_type, [number] * llvm_type.count if isinstance(llvm_type, ir.VectorType) else number)


def emit_widen(builder, halves):
    """LLVM code for float16, or the int16 of their bits, as float32: the same numbers."""
    floats, bits = _like(halves, F32), _like(halves, I32)
    if converts_halves():
        return builder.fpext(builder.bitcast(halves, _like(halves, F16)), floats)
    wide = builder.zext(builder.bitcast(halves, _like(halves, I16)), bits)
    moved = builder.shl(builder.and_(wide, _constant(bits, 0x7FFF)), _constant(bits, 13))
    # The exponents' biases differ by 112; what is below the normal numbers becomes normal.
    scaled = builder.bitcast(builder.fmul(builder.bitcast(moved, floats), _constant(floats, 2.0**112)), bits)
    is_finite = builder.icmp_unsigned("<", moved, _constant(bits, 0x7C00 << 13))
    magnitude = builder.select(is_finite, scaled, builder.or_(moved, _constant(bits, 0x7F800000)))
    sign = builder.shl(builder.and_(wide, _constant(bits, 0x8000)), _constant(bits, 16))
    return builder.bitcast(builder.or_(magnitude, sign), floats)


def emit_narrow(builder, floats):
    """LLVM code for float32 rounded to the nearest float16, of two the even one: int16 of their bits."""
    if converts_halves():
        return builder.bitcast(builder.fptrunc(floats, _like(floats, F16)), _like(floats, I16))
    bits = _like(floats, I32)
    word = builder.bitcast(floats, bits)
    size = builder.and_(word, _constant(bits, 0x7FFFFFFF))
    odd = builder.and_(builder.lshr(size, _constant(bits, 13)), _constant(bits, 1))
    rounded = builder.add(builder.add(size, _constant(bits, 0xFFF - (112 << 23))), odd)
    normal = builder.lshr(rounded, _constant(bits, 13))
    # Below the normal numbers the last bit is worth 2**-24, as that of 0.5 is in float32: the addition rounds.
    half = _constant(floats.type, 0.5)
    small = builder.fadd(call(builder, f"llvm.fabs.{_suffix(floats.type)}", floats.type, [floats]), half)
    small = builder.sub(builder.bitcast(small, bits), builder.bitcast(half, bits))
    found = builder.select(builder.icmp_unsigned("<", size, _constant(bits, 113 << 23)), small, normal)
    none = builder.icmp_unsigned(">", size, _constant(bits, 0x7F800000))
    beyond = builder.select(none, _constant(bits, 0x7E00), _constant(bits, 0x7C00))
    found = builder.select(builder.icmp_unsigned("<", size, _constant(bits, 143 << 23)), found, beyond)
    sign = builder.and_(builder.lshr(word, _constant(bits, 16)), _constant(bits, 0x8000))
    return builder.trunc(builder.or_(found, sign), _like(floats, I16))


def _suffix(llvm_type):
    return f"v{llvm_type.count}f32" if isinstance(llvm_type, ir.VectorType) else "f32"
