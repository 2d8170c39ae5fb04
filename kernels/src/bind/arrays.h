// arrays.h: checked views of NumPy arrays. Every array that reaches a kernel passes through here.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <initializer_list>
#include <string>

#include "bind/kernel_error.h"

namespace qh {

using InputArray = nanobind::ndarray<nanobind::ro>;
using OutputArray = nanobind::ndarray<>;

namespace detail {

template <typename Array>
std::string describe(const Array& array) {
  const nanobind::dlpack::dtype type = array.dtype();
  static constexpr const char* kKinds[] = {"int", "uint", "float"};
  std::string text = type.code < 3 ? kKinds[type.code] : "other";
  text += std::to_string(type.bits) + " (";
  for (size_t i = 0; i < array.ndim(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(array.shape(i));
  }
  return text + ")";
}

inline std::string describe_shape(std::initializer_list<int64_t> shape) {
  std::string text = "(";
  bool first = true;
  for (const int64_t size : shape) {
    text += (first ? "" : ", ") + (size < 0 ? std::string("any") : std::to_string(size));
    first = false;
  }
  return text + ")";
}

template <typename T>
const char* type_name() {
  if constexpr (std::is_same_v<T, float>) return "float32";
  if constexpr (std::is_same_v<T, uint16_t>) return "uint16";
  if constexpr (std::is_same_v<T, int8_t>) return "int8";
  if constexpr (std::is_same_v<T, int32_t>) return "int32";
  if constexpr (std::is_same_v<T, uint8_t>) return "uint8";
}

template <typename T, typename Array>
void check(const Array& array, const char* name, std::initializer_list<int64_t> shape) {
  bool fits = array.device_type() == nanobind::device::cpu::value &&
              array.dtype() == nanobind::dtype<T>() && array.ndim() == shape.size();
  size_t axis = 0;
  for (const int64_t size : shape) {
    if (!fits) break;
    fits = size < 0 || array.shape(axis) == static_cast<size_t>(size);
    ++axis;
  }
  int64_t stride = 1;
  bool contiguous = fits;
  for (size_t i = fits ? shape.size() : 0; i-- > 0;) {
    if (array.shape(i) != 1 && array.stride(i) != stride) contiguous = false;
    stride *= static_cast<int64_t>(array.shape(i));
  }
  if (fits && contiguous && reinterpret_cast<uintptr_t>(array.data()) % alignof(T) == 0) return;
  const std::string expected =
      std::string(type_name<T>()) + " " + describe_shape(shape) + ", C-contiguous and aligned";
  raise_mismatch(name, expected, describe(array) + (contiguous || !fits ? "" : ", strided"),
                 "convert it with numpy.ascontiguousarray");
}

}  // namespace detail

// Pointer to the elements; KernelError unless dtype, shape (-1: any size), C order and element
// alignment hold.
template <typename T>
const T* input(const InputArray& array, const char* name, std::initializer_list<int64_t> shape) {
  detail::check<T>(array, name, shape);
  return static_cast<const T*>(array.data());
}

template <typename T>
T* output(const OutputArray& array, const char* name, std::initializer_list<int64_t> shape) {
  detail::check<T>(array, name, shape);
  return static_cast<T*>(array.data());
}

}  // namespace qh
