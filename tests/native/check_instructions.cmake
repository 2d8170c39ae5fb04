# The object file of an instruction set must have the instructions that it is there for, and none
# that it must not have: another encoding of the same instruction does not run on every CPU.
# Arguments: AR, OBJDUMP, ARCHIVE, MEMBER (object in the archive), FOLDER (to work in), REQUIRED and
# FORBIDDEN (each a list of regular expressions, divided by |||, for lines of the disassembly).
set(object ${FOLDER}/${MEMBER})
execute_process(COMMAND ${AR} p ${ARCHIVE} ${MEMBER} OUTPUT_FILE ${object}
                COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${OBJDUMP} --disassemble ${object}
                OUTPUT_VARIABLE listing COMMAND_ERROR_IS_FATAL ANY)
file(REMOVE ${object})
string(REPLACE "|||" ";" REQUIRED "${REQUIRED}")
string(REPLACE "|||" ";" FORBIDDEN "${FORBIDDEN}")
set(counts "")
foreach(pattern IN LISTS REQUIRED)
  string(REGEX MATCHALL "${pattern}" found "${listing}")
  list(LENGTH found count)
  if(count EQUAL 0)
    message(FATAL_ERROR "${MEMBER}: expected instructions like ${pattern}, found none")
  endif()
  string(APPEND counts " ${count} of ${pattern};")
endforeach()
foreach(pattern IN LISTS FORBIDDEN)
  string(REGEX MATCH "[^\n]*${pattern}[^\n]*" found "${listing}")
  if(found)
    message(FATAL_ERROR "${MEMBER}: expected no instruction like ${pattern}, found: ${found}")
  endif()
endforeach()
message(STATUS "${MEMBER}:${counts} none that must not be there")
