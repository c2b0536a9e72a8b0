// Takes the plain lock file of a mutex the way .NET programs and PowerShell scripts do, says "held",
// and keeps it until standard input ends. When somebody else has it, `Lock hold PATH` says "busy" to
// standard error and waits, and `Lock try PATH` exits with 1.

using System;
using System.IO;
using System.Threading;

static class Lock
{
    // The system's EWOULDBLOCK: somebody else has the file.
    const int Busy = 11;

    static FileStream Open(string path) =>
        new FileStream(path, FileMode.OpenOrCreate, FileAccess.ReadWrite, FileShare.None);

    // .NET has no form that waits, so this one looks again and again.
    static FileStream Wait(string path)
    {
        while (true)
            try { return Open(path); }
            catch (IOException e) when (e.HResult == Busy) { Thread.Sleep(50); }
    }

    static void Keep(FileStream held)
    {
        using (held)
        {
            Console.WriteLine("held");
            Console.In.ReadToEnd();
        }
    }

    static int Main(string[] words)
    {
        try
        {
            Keep(Open(words[1]));
        }
        catch (IOException e) when (e.HResult == Busy)
        {
            if (words[0] == "try") return 1;
            Console.Error.WriteLine("busy");
            Keep(Wait(words[1]));
        }
        return 0;
    }
}
