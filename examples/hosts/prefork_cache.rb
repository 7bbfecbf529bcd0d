# frozen_string_literal: true

# prefork-cache for Ruby, over its C interface: the part that the hosts here need. Fiddle releases Ruby's lock around
# each call.

require "fiddle"

module PreforkCache
  class Error < StandardError; end

  module Library
    HANDLE = Fiddle.dlopen(ENV.fetch("PREFORK_CACHE_LIBRARY", "libprefork_cache.so.0"))

    def self.function(name, arguments, result = Fiddle::TYPE_INT)
      types = { p: Fiddle::TYPE_VOIDP, z: Fiddle::TYPE_SIZE_T, l: Fiddle::TYPE_LONG_LONG }
      Fiddle::Function.new(HANDLE[name], arguments.chars.map { |argument| types.fetch(argument.to_sym) }, result)
    end

    MESSAGE = function("pfc_error_message", "", Fiddle::TYPE_VOIDP)
    OPEN = function("pfc_open", "pzpzpzp")
    SET = function("pfc_set", "ppzpzlp")
    GET = function("pfc_get", "ppzpp")
    FREE = function("pfc_value_free", "p", Fiddle::TYPE_VOID)
    AFTER_FORK = function("pfc_after_fork", "p")

    OK = 0
    MISS = 1

    def self.check(status)
      raise Error, MESSAGE.call.to_s if status < OK

      status
    end

    # Yields a pfc_value for the block to set. Returns its bytes, or nil after a miss.
    def self.value
      size = 3 * Fiddle::SIZEOF_VOIDP
      value = Fiddle::Pointer.malloc(size, Fiddle::RUBY_FREE)
      return if check(yield(value)) == MISS

      data, length = value[0, size].unpack("JJ")
      taken = Fiddle::Pointer.new(data)[0, length]
      FREE.call(value)
      taken
    end
  end

  class Cache
    def initialize(name, url)
      handle = Fiddle::Pointer.malloc(Fiddle::SIZEOF_VOIDP, Fiddle::RUBY_FREE)
      Library.check(Library::OPEN.call(name, name.bytesize, url, url.bytesize, nil, 0, handle))
      @handle = handle.ptr
    end

    def set(key, value, seconds)
      Library.check(Library::SET.call(@handle, key, key.bytesize, value, value.bytesize, 1000 * seconds, nil))
    end

    def get(key)
      Library.value { |value| Library::GET.call(@handle, key, key.bytesize, value, nil) }
    end
  end

  # Refreshes the stores after a fork, now instead of at their first use. Optional. Returns a line for a log.
  def self.after_fork
    Library.value { |report| Library::AFTER_FORK.call(report) }
  end
end
