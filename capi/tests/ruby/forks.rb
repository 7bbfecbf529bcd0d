# Every way to create a process in Ruby, while four threads use the cache: forks.rb URL LIBRARY.

require "fiddle/import"

module Library
  extend Fiddle::Importer
  dlload ARGV[1], "libc.so.6"
  extern "int pfc_open(void *, size_t, void *, size_t, void *, size_t, void *)"
  extern "int pfc_set(void *, void *, size_t, void *, size_t, long long, void *)"
  extern "int pfc_get_into(void *, void *, size_t, void *, size_t, void *, void *)"
  extern "char *pfc_error_message(void)"
  extern "int fork(void)"
end

def checked(status)
  raise "#{status}: #{Library.pfc_error_message}" if status.negative?

  status
end

handle = Fiddle::Pointer.malloc(Fiddle::SIZEOF_VOIDP, Fiddle::RUBY_FREE)
checked(Library.pfc_open("ruby", 4, ARGV[0], ARGV[0].bytesize, nil, 0, handle))
CACHE = handle.ptr

def write_and_read_back(who, number)
  key, value = "#{who}:#{number % 50}", "#{who} wrote #{number}"
  checked(Library.pfc_set(CACHE, key, key.bytesize, value, value.bytesize, 60_000, nil))
  buffer = Fiddle::Pointer.malloc(64, Fiddle::RUBY_FREE)
  length = Fiddle::Pointer.malloc(Fiddle::SIZEOF_SIZE_T, Fiddle::RUBY_FREE)
  found = checked(Library.pfc_get_into(CACHE, key, key.bytesize, buffer, 64, length, nil))
  read = buffer[0, length[0, Fiddle::SIZEOF_SIZE_T].unpack1("J")]
  raise "#{who} read #{read.inspect} (#{found}), but wrote #{value.inspect}" unless found.zero? && read == value
end

def child(who)
  3.times { |number| write_and_read_back(who, number) }
  exit!(0)
end

def reap(pid)
  Process.wait(pid)
  raise "a child ended with #{$?}" unless $?.success?
end

is_over = false
threads = 4.times.map do |thread|
  Thread.new do
    number = 0
    write_and_read_back("thread-#{thread}", number += 1) until is_over
  end
end
10.times do |round|
  reap(fork { child("fork-#{round}") })
  raise "system" unless system("true")
  raise "backticks" unless `echo hello` == "hello\n"

  reap(spawn("true"))
  output = IO.popen("-") { |pipe| pipe ? pipe.read : (write_and_read_back("popen-#{round}", round); print "hello") }
  raise "popen" unless output == "hello"
end
is_over = true
threads.each(&:join)
# Without the interpreter's knowledge. Its own locks allow this only without other threads.
20.times do |round|
  pid = Library.fork
  child("raw-#{round}") if pid.zero?
  reap(pid)
  write_and_read_back("main", round)
end
puts "ok"
