// mapped_files.h: survives a mapped file that is cut short while it is in use.
//
// Reading a page behind the end of a mapped file raises SIGBUS, which ends the process. For a
// watched mapping the handler puts zeros in place of everything from that page on and remembers it:
// whoever reads goes on with zeros, and asks `mapping_is_lost` before trusting the result. A SIGBUS
// anywhere else takes its usual course.
//
// On systems without SIGBUS a mapped file cannot be cut short, and nothing is ever lost.
#pragma once

#include <cstdint>

namespace qh {

// The number under which the mapping is watched from now on, or -1 where there is no room for more
// (4096) or no handler could be installed. begin: start of a page.
int watch_mapping(uintptr_t begin, uint64_t nbytes) noexcept;
// Must be called before the range is unmapped: it may soon be another file's.
void unwatch_mapping(int number) noexcept;
bool mapping_is_lost(int number) noexcept;
// How often the handler has put zeros in place of a file, in the life of this process.
uint64_t lost_mappings() noexcept;

}  // namespace qh
